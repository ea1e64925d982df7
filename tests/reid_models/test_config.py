from dataclasses import dataclass, field
from typing import Literal

import pytest

from reid_models.config import (
    ConfigError,
    all_settings,
    config_dict,
    config_from_dict,
    dump_config,
    load_config,
    settings_difference,
)


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
        ("image_hw=[1,2,3]", "image_hw: expected 2 values, such as [256, 128], found [1, 2, 3]"),
        ("optim.lr", "expected section.key=value"),
        ("image_hw[0]=64", "image_hw: expected a whole list, such as [256, 128], found {'0': 64}"),
        ("image_hw={a: b}", "image_hw: expected a whole list, such as [256, 128], found {'a': 'b'}"),
        ("weights={a: b}", "weights: expected one value, found {'a': 'b'}"),
        ("image_hw=64", "image_hw: "),
        ("image_hw=[64,null]", "'None'"),
        ("image_hw=[1e999,1]", "could not be converted to Integer"),
        ("optim.lr=\udcff", "no YAML value"),
        ("optim.lr=[1, [2", "no YAML value"),
        ("optim.lr=???", "optim.lr: found '???', a reference; expected the value itself"),
        ("weights=${oc.env:HOME}", "weights: found '${oc.env:HOME}', a reference; expected the value itself"),
        ("weights=${optim.name}", "weights: found '${optim.name}', a reference; expected the value itself"),
    ],
)
def test_a_bad_override_is_refused_in_one_line_that_names_it(override, message):
    with pytest.raises(ConfigError, match=r"^--set ") as error:
        load_config(Settings, None, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "- 1\n- 2\n",
        "optim: [",
        "\x00",
        "weights: ${HOME}/x.pth",
        "weights: &a [*a]",
        "[" * 5000,
        "5",
        "weights: !!set {x}",
    ],
    ids=["a-list", "broken", "binary", "a-reference-to-nothing", "itself", "deep", "a-number", "a-set"],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path, text):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"settings\.yaml"):
        load_config(Settings, file)


def test_settings_that_are_no_text_are_named(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_bytes(b"weights: \xff\xfe")
    with pytest.raises(ConfigError, match=r"settings\.yaml: no text in UTF-8 \(byte 9\); .*save it as UTF-8"):
        load_config(Settings, file)
    file.write_text("weights: a.pth", encoding="utf-16")  # as some editors save it
    assert load_config(Settings, file).weights == "a.pth"


def test_nothing_is_taken_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    file = tmp_path / "settings.yaml"
    file.write_text("weights: ${oc.env:SECRET}")
    for use in (
        lambda: load_config(Settings, file),
        lambda: config_from_dict(Settings, {"weights": "${oc.env:SECRET}"}),
    ):
        with pytest.raises(ConfigError, match="a reference; expected the value itself") as caught:
            use()
        assert "hunter2" not in str(caught.value)


def test_of_a_missing_file_those_are_told_that_may_be_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such settings file; expected a YAML file"):
        load_config(Settings, tmp_path / "nowhere.yaml")
    (tmp_path / "configs").mkdir()
    for name in ("mgn_market", "demo"):
        (tmp_path / "configs" / f"{name}.yaml").write_text("weights: a")
    for name in ("mgn_market", "mgn_markt.yaml", "configs/mgn-market.yaml"):
        with pytest.raises(ConfigError, match=r"no such settings file; did you mean configs/mgn_market\.yaml\?$"):
            load_config(Settings, name)
    with pytest.raises(ConfigError, match=r"there are configs/demo\.yaml, configs/mgn_market\.yaml$"):
        load_config(Settings, "nowhere")


def test_a_long_override_is_not_repeated_in_full():
    with pytest.raises(ConfigError, match=r"^--set weights=\[9+\.\.\.: ") as caught:
        load_config(Settings, None, ["weights=[" + "9" * 3000])
    assert len(str(caught.value)) < 300


def test_every_setting_has_its_full_key():
    assert all_settings(Settings) == ["optim", "image_hw", "weights", "optim.lr", "optim.name"]


def test_what_is_dumped_is_what_is_loaded(tmp_path):
    config = Settings(Optim(lr=0.125), image_hw=(96, 48), weights="a=b.pth")
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(Settings, tmp_path / "config.yaml") == config
    assert config_from_dict(Settings, config_dict(config)) == config


def test_a_difference_names_the_full_key_and_both_values():
    changed = Settings(Optim(lr=0.5))
    assert settings_difference(config_dict(Settings()), config_dict(changed)) == ["optim.lr: 0.001 -> 0.5"]
