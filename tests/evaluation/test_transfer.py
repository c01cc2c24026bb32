"""evaluate(source=): attacks run on the source, success is checked on the model; evaluate(eot=): stochastic models."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from doubles import BALLS, EPS, NEVER, SUITE, MinimumNorm
from nets import Counting, LabelOnly, Stochastic, batch, linear, mlp, predicted
from torch import Tensor, nn

import epsball as eb
from epsball.attacks.attack import Attack
from epsball.problem.losses import margin
from epsball.problem.objective import ModelWarning, changes_prediction
from epsball.problem.task import Task

PAIRS = {f"{name}-{norm}": (SUITE[name], norm) for name in SUITE for norm in SUITE[name].norms() if norm != "l0"}


def two() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """A model, a source close to it, examples, and the labels that the model gives them."""
    model, source = mlp((20,), 5, seed=5), mlp((20,), 5, seed=5)
    with torch.no_grad():
        for part in source.parameters():
            part += 0.1 * part.abs().mean() * torch.randn(part.shape, generator=torch.Generator().manual_seed(3))
    x = batch(64, (20,))
    return model, source, x, predicted(model, x)


def fooled(run: eb.Evaluation) -> Tensor:
    return torch.tensor([status == "fooled" for status in run.records["status"].to_pylist()])


@pytest.mark.parametrize(("attack", "norm"), PAIRS.values(), ids=PAIRS)
def test_transfer_from_the_model_itself_is_the_attack_run_to_its_end(attack: Attack, norm: str) -> None:
    """Without a source an attack stops at its first success; a transfer does not know when that is."""
    model, _, x, y = two()
    ball = BALLS[norm](eps=0.8 * EPS[norm], lo=0, hi=1)
    own = attack.until == "done" or attack is SUITE["label-walk"]  # these check success themselves, on the source
    end = attack(model, x, y, ball, success=changes_prediction if own else NEVER)
    run = eb.evaluate(model, (x, y), ball, attack, source=model)
    assert torch.equal(fooled(run), (predicted(model, end) != y))
    ids, points = run.points()
    torch.testing.assert_close(torch.from_numpy(points), end[torch.from_numpy(ids)], rtol=0, atol=1e-9)


@pytest.mark.parametrize("attack", SUITE.values(), ids=SUITE)
def test_attack_of_a_transfer_runs_on_the_source_only(attack: Attack) -> None:
    """No gradient of the model; it sees clean examples (half thrice), the set-up's, the ends of jobs, stored points."""
    inner, source, x, y = two()
    norm = "linf" if "linf" in attack.norms() else attack.norms()[0]
    shown: list[Tensor] = []

    def model(z: Tensor) -> Tensor:
        assert not z.requires_grad
        shown.append(z.clone())
        return inner(z).detach()

    seen = Counting(source)
    run = eb.evaluate(model, (x, y), BALLS[norm](eps=EPS[norm], lo=0, hi=1), attack, source=seen, batch_size=64)
    rows_independent = 5 * 32
    assert sum(len(z) for z in shown) <= 64 + 2 * 32 + rows_independent + 64 + 64 + 2 * 32  # padded
    assert sum(len(z) for z in shown) + seen.forwards == run.forwards
    assert (seen.backwards > 0) == (attack.needs == "grad")


def test_model_calls_of_a_transfer_are_those_that_were_made() -> None:
    inner, source, x, y = two()
    for attack in (eb.PGD(steps=4, restarts=2), eb.FGSM(n_targets=2), eb.UniformNoise(restarts=3), MinimumNorm()):
        model, seen = Counting(inner), Counting(source)
        run = eb.evaluate(model, (x, y), eb.Linf(eps=0.05, lo=0, hi=1), attack, source=seen, batch_size=32, seed=1)
        assert model.forwards + seen.forwards == run.forwards
        assert model.backwards == 0
        assert seen.backwards == run.backwards
        attacked = run.records.filter(
            ~np.isin(run.records["status"].to_numpy(zero_copy_only=False), ("misclassified",))
        )
        steps = {eb.PGD: 4, eb.FGSM: 1, eb.UniformNoise: 1, MinimumNorm: 16}[type(attack)]
        # Each job runs to its end on the source and is checked once on the model; and one forward at x.
        assert set(attacked["forwards"].to_numpy()) <= {1 + jobs * (steps + 1) for jobs in range(1, attack.jobs + 1)}


def test_target_classes_of_a_transfer_are_ranked_by_the_source() -> None:
    model, source, x, y = two()
    source = linear((20,), 5, seed=4)
    seen: dict[int, int] = {}

    def spy(logits: Tensor, task: Task) -> Tensor:
        seen.update(zip(task.noise.ids.tolist(), task.aim.tolist(), strict=True))
        return margin(logits, task)

    eb.evaluate(model, (x, y), eb.Linf(eps=1e-6), eb.FGSM(n_targets=1, loss=spy), source=source)
    ranked = [m(x).detach().scatter(1, y[:, None], -torch.inf).argmax(1).tolist() for m in (source, model)]
    assert ranked[0] != ranked[1]
    assert [seen[i] for i in range(64)] == ranked[0]


def test_transfer_breaks_some_examples_and_fewer_than_the_attack_itself() -> None:
    model, source, x, y = two()
    ball = eb.Linf(eps=0.08, lo=0, hi=1)
    own, close, far = (
        eb.evaluate(model, (x, y), ball, "pgd:steps=10", source=source).count("fooled")
        for source in (None, source, mlp((20,), 5, seed=9))
    )
    assert far < close <= own
    assert close > 0


def test_source_that_returns_labels_needs_a_decision_based_attack() -> None:
    model, source, x, y = two()
    ball = eb.Linf(eps=0.2, lo=0, hi=1)
    walked = eb.evaluate(model, (x, y), ball, SUITE["label-walk"], source=LabelOnly(source))
    assert torch.equal(fooled(walked), fooled(eb.evaluate(model, (x, y), ball, SUITE["label-walk"], source=source)))
    with pytest.raises(eb.BadInput, match="returns labels"):
        eb.evaluate(model, (x, y), ball, "pgd", source=LabelOnly(source))
    found = eb.evaluate(LabelOnly(model), (x, y), ball, "pgd", source=source)
    assert torch.equal(fooled(found), fooled(eb.evaluate(model, (x, y), ball, "pgd", source=source)))


def test_source_with_other_classes_is_refused() -> None:
    model, _, x, y = two()
    assert y.max() > 1
    with pytest.raises(eb.BadInput, match="must be below the 2 classes"):
        eb.evaluate(model, (x, y), eb.Linf(eps=0.2), "pgd", source=mlp((20,), 2))
    with pytest.raises(eb.BadInput, match="`source` must be a model, got the text"):
        eb.evaluate(model, (x, y), eb.Linf(eps=0.2), "pgd", source="resnet18")


def test_callable_of_a_user_is_given_the_source() -> None:
    model, source, x, y = two()
    given = []

    def own(model: nn.Module, x: Tensor, y: Tensor, ball: eb.Linf) -> Tensor:
        given.append(model)
        return x

    eb.evaluate(model, (x, y), eb.Linf(eps=0.2), own, source=source)
    assert given == [source]


def test_target_of_a_transfer_must_be_reached() -> None:
    model, source, x, y = two()
    ball, target = eb.Linf(eps=0.3, lo=0, hi=1), (y + 1) % 5
    run = eb.evaluate(model, (x, y), ball, "pgd:steps=10", source=source, target=target)
    ids, points = run.points()
    assert len(ids) > 5
    assert torch.equal(predicted(model, torch.from_numpy(points)), target[torch.from_numpy(ids)])


def test_flags_of_the_source_are_restored() -> None:
    model, _, x, y = two()
    source = mlp((20,), 5, noisy=True)
    source.train()
    source[2].eval()
    flags = [*(m.training for m in source.modules()), *(p.requires_grad for p in source.parameters())]
    eb.evaluate(model, (x, y), eb.Linf(eps=0.1), "pgd:steps=2", source=source)
    assert flags == [*(m.training for m in source.modules()), *(p.requires_grad for p in source.parameters())]
    assert all(part.grad is None for part in source.parameters())


def test_resume_with_another_source_is_refused(tmp_path: Path) -> None:
    model, source, x, y = two()
    ball, more = eb.Linf(eps=0.1, lo=0, hi=1), {"run_dir": tmp_path / "run"}
    first = eb.evaluate(model, (x, y), ball, "fgsm", source=source, **more)
    assert eb.evaluate(model, (x, y), ball, "fgsm", source=source, **more).records.equals(first.records)
    for other in (None, mlp((20,), 5, seed=9), model):
        with pytest.raises(eb.BadInput, match="source"):
            eb.evaluate(model, (x, y), ball, "fgsm", source=other, **more)
    with pytest.raises(eb.BadInput, match="eot"):
        eb.evaluate(model, (x, y), ball, "fgsm", source=source, eot=2, **more)


# Means over a stochastic model.


def test_mean_of_several_passes_is_more_stable_than_one() -> None:
    """Close to a decision boundary the results of two runs with other draws differ less often with eot=16."""
    inner, _, x, y = two()
    differ = []
    for eot in (1, 16):
        runs = []
        for draw in (1, 2):
            model = Stochastic(inner, seed=draw)
            data = eb.data.from_arrays(x.repeat(6, 1), y.repeat(6))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`model` is stochastic", ModelWarning)
                runs.append(fooled(eb.evaluate(model, data, eb.Linf(eps=0.06), "fgsm", eot=eot)))
        differ.append(int((runs[0] != runs[1]).sum()))
    assert differ[0] > 2 * differ[1], differ


def test_every_forward_pass_of_a_mean_is_counted() -> None:
    inner, _, x, y = two()
    for attack, steps in ((eb.PGD(steps=3), 3), (eb.UniformNoise(restarts=2), 2), (eb.FGSM(n_targets=2), 2)):
        for model in (Counting(Stochastic(inner)), Counting(inner)):
            run = eb.evaluate(model, (x, y), eb.Linf(eps=1e-4, lo=0, hi=1), attack, eot=5, batch_size=32)
            assert model.forwards == run.forwards
            assert model.backwards == run.backwards
        robust = run.records["status"].to_numpy(zero_copy_only=False) == "robust"
        assert set(run.records["forwards"].to_numpy()[robust]) == {5 * (steps + attack.jobs)}
        assert run.cost["clean"] == 5 * 64
        assert run.probes == 0


def test_resume_with_a_stochastic_model_is_accepted(tmp_path: Path) -> None:
    """Its clean logits differ from those of the first run."""
    inner, _, x, y = two()
    more = {"run_dir": tmp_path / "run", "shard_size": 32, "eot": 3}
    model = Stochastic(inner)
    first = eb.evaluate(model, (x, y), eb.Linf(eps=0.05), "fgsm", **more)
    (tmp_path / "run" / "records" / "00001.parquet").unlink()
    again = eb.evaluate(model, (x, y), eb.Linf(eps=0.05), "fgsm", **more)
    assert again.records.slice(0, 32).equals(first.records.slice(0, 32))


@pytest.mark.parametrize("eot", [0, -1, 1.5, True, "2"])
def test_eot_below_one_is_refused(eot: object) -> None:
    inner, _, x, y = two()
    with pytest.raises(eb.BadInput, match="`eot` must be"):
        eb.evaluate(inner, (x, y), eb.Linf(eps=0.05), "fgsm", eot=eot)
    with pytest.raises(eb.BadInput, match="`eot` must be"):
        eb.FGSM()(inner, x, y, eb.Linf(eps=0.05), eot=eot)
