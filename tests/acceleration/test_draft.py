"""Drafts: attacks in lower precision whose successes the model confirms; what they miss is attacked in full."""

from __future__ import annotations

import pytest
import torch

import epsball as eb
from epsball.acceleration import draft
from epsball.common.errors import BadInput
from epsball.models.registry import build
from epsball.problem.objective import Objective


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "drafts_pay", lambda device: True)


def subject() -> tuple[torch.nn.Module, tuple[torch.Tensor, torch.Tensor], eb.Ball]:
    model, x = build("small-cnn", (1, 12, 12), 5, seed=3), torch.rand(200, 1, 12, 12, generator=torch.manual_seed(0))
    with torch.no_grad():
        return model, (x, model(x).argmax(1)), eb.Linf(eps=0.004, lo=0, hi=1)


def test_a_draft_on_a_cpu_is_refused_with_the_reason() -> None:
    model, data, ball = subject()
    with pytest.raises(BadInput, match="`draft` must be left out on a cpu, got 'bf16': it is slower"):
        eb.evaluate(model, data, ball, "pgd", draft="bf16")
    with pytest.raises(BadInput, match=r"draft.*fp8"):
        eb.evaluate(model, data, ball, "pgd", draft="fp8")  # type: ignore[arg-type]


def test_a_draft_precedes_each_gradient_attack_and_its_successes_are_confirmed(everywhere: None, tmp_path) -> None:
    model, data, ball = subject()
    attacks = ["fgsm", "pgd:steps=10", "square:steps=20"]
    found = eb.evaluate(model, data, ball, attacks, draft="bf16", run_dir=tmp_path)
    plain = eb.evaluate(model, data, ball, attacks)
    names = [stage["attack"] for stage in found.config["stages"]]
    assert names == ["fgsm in bf16", "fgsm", "pgd:steps=10 in bf16", "pgd:steps=10", "square:steps=20"]
    assert 0 < found.count("robust") < len(found)
    assert found.count("robust") <= plain.count("robust") + 2
    by_attack = set(found.records["attack"].to_pylist())
    assert {"fgsm in bf16"} <= by_attack
    assert eb.verify(tmp_path, model).agrees
    assert eb.Evaluation.load(tmp_path).records.equals(found.records)
    again = eb.evaluate(model, data, ball, attacks, draft="bf16", run_dir=tmp_path)
    assert again.records.equals(found.records)
    with pytest.raises(BadInput, match="draft"):
        eb.evaluate(model, data, ball, attacks, run_dir=tmp_path)


def test_what_fools_only_in_lower_precision_is_not_a_success(everywhere: None) -> None:
    class Cracked(torch.nn.Module):
        """Wrong for every input, but only where products are in bfloat16."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.linear(x)
            return -logits if logits.dtype == torch.bfloat16 else logits

    torch.manual_seed(0)
    model, x = Cracked(), torch.rand(40, 4)
    y, ball = model(x).argmax(1), eb.Linf(eps=0.0)
    with Objective(draft.Draft(model), needs="logits", loss=eb.losses.cross_entropy) as objective:
        assert (objective.forward(x).argmax(1) != y).all()  # what the draft sees
    found = eb.evaluate(model, (x, y), ball, "pgd:steps=3", draft="bf16")
    assert found.count("robust") == 40
    assert all(stage.fooled == 0 for stage in found.stages)
    assert found.stages[1].unconfirmed == 40


def test_logits_have_the_dtype_of_the_input_and_gradients() -> None:
    model, (x, _), _ = subject()
    x = x[:3].requires_grad_()
    logits = draft.Draft(model)(x)
    assert logits.dtype == torch.float32
    (grad,) = torch.autograd.grad(logits.sum(), x)
    assert grad.dtype == torch.float32
    assert grad.abs().sum() > 0
    with torch.no_grad():
        assert 0 < (logits - model(x)).abs().amax() < 0.1
