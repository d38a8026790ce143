"""StepTrainerCfg: the exact fields of the contract, and errors that name the value."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import trainer.torch
from trainer.config import StepTrainerCfg, resolve_cfg
from workers.errors import ConfigError

FIELDS = {
    "timesteps": ("int", 100000),
    "headless": ("bool", False),
    "render_interval": ("int", 1),
    "disable_progressbar": ("bool | None", False),
    "close_environment_at_exit": ("bool", True),
    "environment_info": ("str", "episode"),
    "stochastic_evaluation": ("bool", False),
}

WRONG: list[tuple[str, Any, str]] = [
    ("timesteps", -1, "an integer of at least 0"),
    ("timesteps", 10.0, "an integer of at least 0"),
    ("timesteps", True, "an integer of at least 0"),
    ("timesteps", None, "an integer of at least 0"),
    ("headless", 1, "True or False"),
    ("headless", None, "True or False"),
    ("render_interval", 0, "an integer of at least 1"),
    ("render_interval", True, "an integer of at least 1"),
    ("render_interval", "1", "an integer of at least 1"),
    ("disable_progressbar", 0, "True, False or None"),
    ("disable_progressbar", "no", "True, False or None"),
    ("close_environment_at_exit", None, "True or False"),
    ("close_environment_at_exit", np.True_, "True or False"),
    ("environment_info", None, "a string"),
    ("environment_info", b"episode", "a string"),
    ("stochastic_evaluation", 0, "True or False"),
]


def test_exactly_the_fields_of_the_contract():
    assert {f.name: (f.type, f.default) for f in dataclasses.fields(StepTrainerCfg)} == FIELDS
    assert all(field.kw_only for field in dataclasses.fields(StepTrainerCfg))
    assert trainer.torch.StepTrainerCfg is StepTrainerCfg


def test_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        StepTrainerCfg(5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'ray_address'"):
        StepTrainerCfg(ray_address="auto")  # type: ignore[call-arg]


def test_as_in_skrl():
    from skrl.trainers.torch import StepTrainerCfg as Oracle

    assert dataclasses.asdict(StepTrainerCfg()) == dataclasses.asdict(Oracle())
    assert [f.name for f in dataclasses.fields(StepTrainerCfg)] == [f.name for f in dataclasses.fields(Oracle)]


def test_validate_and_expand():
    cfg = StepTrainerCfg(timesteps=0, render_interval=7, disable_progressbar=None, environment_info="")
    before = dataclasses.asdict(cfg)
    assert cfg.validate() is True
    cfg.expand()
    assert dataclasses.asdict(cfg) == before


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_every_wrong_value_is_named(name: str, value: Any, expected: str):
    message = f"cfg: {name} is {value!r}; expected {expected}"
    cfg = StepTrainerCfg(**{name: value})
    for check in (cfg.validate, lambda: resolve_cfg(cfg), lambda: resolve_cfg({name: value})):
        with pytest.raises(ConfigError) as caught:
            check()
        assert str(caught.value) == message


def test_every_field_is_checked():
    assert {name for name, _, _ in WRONG} == set(FIELDS)


def test_resolve():
    cfg = StepTrainerCfg(timesteps=5)
    assert resolve_cfg(cfg) is cfg
    given = {"timesteps": 7, "headless": True}
    assert resolve_cfg(MappingProxyType(given)) == StepTrainerCfg(timesteps=7, headless=True)
    assert given == {"timesteps": 7, "headless": True}
    assert resolve_cfg({}) == StepTrainerCfg()


def test_unknown_keys_are_all_named():
    with pytest.raises(ConfigError) as caught:
        resolve_cfg({"timestep": 5, "headless": True, "render": 1})
    assert (
        str(caught.value)
        == f"cfg: unknown keys 'timestep', 'render'; did you mean 'timesteps'? Allowed keys: {', '.join(FIELDS)}"
    )


@pytest.mark.parametrize(
    ("cfg", "kind"), [(None, "NoneType"), (["timesteps"], "list"), (5, "int"), (Fraction(5), "Fraction")]
)
def test_what_is_no_configuration(cfg: Any, kind: str):
    name = f"{type(cfg).__module__}.{kind}"
    with pytest.raises(
        ConfigError, match=f"^cfg is of type {name}; expected Lockstep's StepTrainerCfg or a dictionary$"
    ):
        resolve_cfg(cfg)


def test_the_wrong_value_stops_the_trainer():
    with pytest.raises(ConfigError, match="render_interval is 0"):
        trainer.torch.StepTrainer(env=None, agents=None, cfg={"render_interval": 0})
