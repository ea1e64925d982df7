from dataclasses import dataclass, field
from typing import Literal

import pytest

from reid_models.config import ConfigError, config_dict, config_from_dict, dump_config, load_config, settings_difference


@dataclass(frozen=True)
class Optim:
    lr: float = 1e-3
    name: Literal["sgd", "adam"] = "adam"

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"optim.lr: must be positive, got {self.lr:g}")


@dataclass(frozen=True)
class Settings:
    optim: Optim = field(default_factory=Optim)
    image_hw: tuple[int, int] = (256, 128)
    weights: str | None = None


def test_later_layers_win(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("optim:\n  lr: 3e-4\n  name: sgd\n")
    config = load_config(Settings, file, ["optim.lr=0.5", "image_hw=[64,32]"])
    assert config == Settings(Optim(lr=0.5, name="sgd"), image_hw=(64, 32))


def test_yaml_may_write_3e_4_for_a_number(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("optim:\n  lr: 3e-4\n")
    assert load_config(Settings, file).optim.lr == 3e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown setting optim.lrr; did you mean optim.lr?"),
        ("lr=1", "unknown setting lr; did you mean optim.lr?"),
        ("colour=red", "unknown setting colour; known here: optim, image_hw, weights"),
        ("optim.lr=fast", "optim.lr: Value 'fast'"),
        ("optim.lr=-1", "optim.lr: must be positive, got -1"),
        ("optim.name=lion", "expected one of ['sgd', 'adam']"),
        ("optim=3", "optim is a group of settings"),
        ("image_hw=[1,2,3]", "length 3"),
        ("optim.lr", "expected section.key=value"),
    ],
)
def test_a_bad_override_is_refused_in_one_line_that_names_it(override, message):
    with pytest.raises(ConfigError, match=r"^--set ") as error:
        load_config(Settings, None, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["- 1\n- 2\n", "optim: [", "\x00", "weights: ${HOME}/x.pth"],
    ids=["a-list", "broken", "binary", "a-reference-to-nothing"],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path, text):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"settings\.yaml"):
        load_config(Settings, file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such settings file"):
        load_config(Settings, tmp_path / "nowhere.yaml")


def test_what_is_dumped_is_what_is_loaded(tmp_path):
    config = Settings(Optim(lr=0.125), image_hw=(96, 48), weights="a=b.pth")
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(Settings, tmp_path / "config.yaml") == config
    assert config_from_dict(Settings, config_dict(config)) == config


def test_a_difference_names_the_full_key_and_both_values():
    changed = Settings(Optim(lr=0.5))
    assert settings_difference(config_dict(Settings()), config_dict(changed)) == ["optim.lr: 0.001 -> 0.5"]
