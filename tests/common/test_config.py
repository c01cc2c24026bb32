"""Configurations: values are checked by the rules of their fields, and go through mappings, TOML and JSON."""

from pathlib import Path
from typing import Annotated, Literal

import pytest

from epsball.common.checks import check_between, check_positive, check_whole
from epsball.common.config import Config, Rule
from epsball.common.errors import BadInput


class Training(Config):
    """An example."""

    epochs: Annotated[int, Rule(check_whole, 1, "as in epochs=5")] = 5
    lr: Annotated[float, Rule(check_positive, "usual is 1e-3")] = 1e-3
    share: Annotated[float, Rule(check_between, 0, 1, ends="[)")] = 0.0
    patience: Annotated[int | None, Rule(check_whole, 1)] = None
    optimizer: Literal["adam", "sgd"] = "adam"
    radii: tuple[float | str, ...] | None = None
    quick: bool = False

    def check(self) -> None:
        if self.quick and self.epochs > 9:
            raise BadInput("`epochs` must be < 10 with `quick`")


class Longer(Training):
    """A subclass with a default of its own and one more field."""

    epochs: Annotated[int, Rule(check_whole, 1)] = 50
    name: str = "long"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "`epochs` must be a whole number >= 1, got 0; as in epochs=5"),
        ({"epochs": 1.0}, "`epochs` must be a whole number >= 1, got 1.0"),
        ({"epochs": True}, "`epochs` must be a whole number >= 1, got True"),
        ({"epochs": None}, "`epochs` must be a whole number >= 1, got None"),
        ({"lr": 0.0}, "`lr` must be > 0 and finite, got 0.0; usual is 1e-3"),
        ({"lr": float("nan")}, "`lr` must be > 0 and finite, got nan"),
        ({"lr": float("inf")}, "`lr` must be > 0 and finite, got inf"),
        ({"lr": "fast"}, "`lr` must be a number, got 'fast'"),
        ({"share": 1.0}, "`share` must be in [0, 1), got 1.0"),
        ({"patience": 0}, "`patience` must be a whole number >= 1, got 0"),
        ({"optimizer": "adm"}, "did you mean 'adam'"),
        ({"quick": "yes"}, "`quick` must be true or false, got 'yes'"),
        ({"quick": True, "epochs": 10}, "`epochs` must be < 10 with `quick`"),
        ({"epoch": 3}, "did you mean 'epochs'"),
    ],
)
def test_an_error_names_field_rule_and_value(options: dict, message: str):
    with pytest.raises(BadInput) as error:
        Training.of(options)
    assert message in str(error.value)


def test_a_subclass_keeps_fields_and_rules_and_may_change_defaults():
    assert Longer().epochs == 50
    assert Longer.names() == [*Training.names(), "name"]
    with pytest.raises(BadInput, match="`share`"):
        Longer(share=2.0)
    with pytest.raises(BadInput, match="with `quick`"):
        Longer(quick=True)


def test_json_and_toml_give_an_equal_configuration(tmp_path: Path):
    made = Training(epochs=2, radii=(0.5, "8/255"), quick=True)
    assert Training.from_json(made.to_json()) == made
    (tmp_path / "run.toml").write_text('epochs = 2\nradii = [0.5, "8/255"]\nquick = true\n')
    assert Training.from_toml(tmp_path / "run.toml") == made
    (tmp_path / "run.toml").write_text("epoch = 2\n")
    with pytest.raises(BadInput, match="did you mean 'epochs'"):
        Training.from_toml(tmp_path / "run.toml")
