"""Published names, settings and optimizer states, both ways, against the lists of the published program."""

import copy
import dataclasses
import gzip
import json
import logging
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from dgnet_gen.model import DGNet, NetworksConfig
from dgnet_gen.published import (
    NETWORK_KEYS,
    PATHS,
    STOCK,
    TRAINING_KEYS,
    UNREAD,
    from_published,
    is_published_settings,
    optimizer_states_from_published,
    optimizer_states_to_published,
    published_config,
    published_optimizer_layout,
    published_settings,
    published_tables,
    to_published,
    training_tree,
    training_values,
)
from dgnet_gen.settings import DGNetTrainConfig, OptimConfig
from dgnet_gen.step import make_optimizers
from reid_models.config import ConfigError, config_dict, config_from_dict, settings_difference
from reid_models.optimizers import load_optimizer_state
from reid_models.runs import CheckpointError

# Names, shapes and types of the published files for Market-1501, and the order of their optimizers' parameters.
MARKET = json.loads(gzip.decompress((Path(__file__).parent / "data" / "dgnet_market.json.gz").read_bytes()))
NARROW = NetworksConfig(
    image_hw=(64, 32), enlarge_small=True, structure_dim=2, mlp_dim=6, discriminator_dim=2, discriminator_res=1,
    num_scales=2,
)  # fmt: skip

# The published latest.yaml, value for value.
LATEST = """
apex: false
image_save_iter: 5000
image_display_iter: 5000
display_size: 16
snapshot_save_iter: 10000
log_iter: 1
max_iter: 100000
batch_size: 8
weight_decay: 0.0005
beta1: 0
beta2: 0.999
lr_g: 0.0001
lr_d: 0.0001
lr2: 0.002
lr_policy: multistep
step_size: 60000
gamma: 0.1
gamma2: 0.1
gan_w: 1
recon_x_w: 5
recon_xp_w: 5
recon_f_w: 0
recon_s_w: 0
recon_id_w: 0.5
recon_x_cyc_w: 0
vgg_w: 0
id_w: 1
pid_w: 1
teacher_w: 0
teacher: best
teacher_style: 0
B_w: 0.2
max_w: 1
max_cyc_w: 2
max_teacher_w: 2
warm_iter: 30000
warm_teacher_iter: 30000
warm_scale: 0.0005
train_bn: true
use_encoder_again: 0.5
use_decoder_again: true
erasing_p: 0.5
norm_id: false
pool: max
single: gray
sqrt: false
ID_class: 751
ID_stride: 1
ID_style: AB
gen:
  dim: 16
  mlp_dim: 512
  mlp_norm: none
  id_dim: 2048
  activ: lrelu
  n_downsample: 2
  n_res: 4
  non_local: 0
  pad_type: reflect
  tanh: false
  dec: basic
  dropout: 0
  init: kaiming
dis:
  LAMBDA: 0.01
  dim: 32
  norm: none
  activ: lrelu
  n_layer: 2
  n_res: 4
  num_scales: 3
  non_local: 0
  pad_type: reflect
  gan_type: lsgan
input_dim_a: 1
input_dim_b: 1
num_workers: 8
new_size: 128
crop_image_height: 256
crop_image_width: 128
data_root: ../Market/pytorch/
"""


@cache
def on_meta(config=None, num_ids=751):
    """A model without memory for its weights, shared by the tests."""
    with torch.device("meta"):
        return DGNet(config or NetworksConfig(), num_ids)


def filled(config=NARROW, num_ids=5, seed=0):
    """A model with arbitrary values in every tensor."""
    model = copy.deepcopy(on_meta(config, num_ids))
    for network in model.networks().values():
        network.to_empty(device="cpu")  # no time for a start that is overwritten
    generator = torch.Generator().manual_seed(seed)
    for network in model.networks().values():
        for value in network.state_dict().values():
            value.copy_(torch.randint(-99, 99, value.shape, generator=generator))
    return model


def names(model, file):
    return list(published_tables(model)[file])


# Names


@pytest.mark.parametrize("file", ["gen", "id", "dis"])
def test_every_published_tensor_has_its_name_shape_type_and_place(file):
    table = published_tables(on_meta())[file]
    found = [
        [name, list(slot.value.shape), str(slot.value.dtype).removeprefix("torch.")] for name, slot in table.items()
    ]
    assert found == MARKET["entries"][file]


def test_the_plain_style_has_the_names_of_a_single_head():
    model = on_meta(NetworksConfig(heads="one", last_stride=2))
    assert names(model, "id") == [name for name, _, _ in MARKET["entries"]["plain"]]


def test_only_the_imagenet_classifier_and_the_adain_statistics_are_unread():
    unread = {name for table in published_tables(on_meta()).values() for name, slot in table.items() if not slot.ours}
    blocks = [f"dec.model.1.model.{k}.model.{j}.norm.running_{what}" for k in range(4) for j in (0, 1)
              for what in ("mean", "var")]  # fmt: skip
    assert unread == {"model.fc.weight", "model.fc.bias", *blocks}


def test_attention_of_the_decoder_moves_what_follows_by_one():
    plain, found = (
        names(on_meta(NARROW), "gen"),
        names(on_meta(dataclasses.replace(NARROW, decoder_attention=True)), "gen"),
    )
    inserted = [f"dec.model.2.{name}" for name in ("gamma", "query_conv.weight", "query_conv.bias", "key_conv.weight",
                "key_conv.bias", "value_conv.weight", "value_conv.bias")]  # fmt: skip
    first = plain.index("dec.model.3.norm.gamma")
    assert found[:first] + found[first + 7 :] == [
        f"dec.model.{int(name.split('.')[2]) + 1}.{name.split('.', 3)[3]}"
        if name.startswith("dec.") and int(name.split(".")[2]) > 2
        else name
        for name in plain
    ]
    assert found[first : first + 7] == inserted


def test_a_learned_activation_stands_between_norm_and_convolution_and_after_a_linear_layer():
    found = names(on_meta(dataclasses.replace(NARROW, activation="prelu")), "gen")
    for expected in (
        ["dec.model.3.norm.gamma", "dec.model.3.norm.beta", "dec.model.3.activation.weight", "dec.model.3.conv.weight"],
        ["mlp_w2.model.0.fc.weight", "mlp_w2.model.0.fc.bias", "mlp_w2.model.0.activation.weight"],
        ["enc_content.model.0.activation.weight", "enc_content.model.0.conv.weight"],
    ):
        start = found.index(expected[0])
        assert found[start : start + len(expected)] == expected
    assert "dec.model.1.model.0.model.1.activation.weight" not in found  # nothing after the second convolution
    assert "dec.model.8.activation.weight" not in found


@pytest.mark.parametrize("blocks", ["series", "parallel"])
def test_other_blocks_have_the_names_of_basic_ones(blocks):
    assert names(on_meta(dataclasses.replace(NARROW, decoder_blocks=blocks)), "gen") == names(on_meta(NARROW), "gen")


def test_more_halvings_move_residual_group_and_pyramid():
    found = names(on_meta(dataclasses.replace(NARROW, n_downsample=3)), "gen")
    assert "enc_content.model.5.conv.weight" in found  # two units for each halving
    assert "enc_content.model.6.model.3.model.1.conv.weight" in found
    assert "enc_content.model.7.fuse.conv.weight" in found
    assert found.index("dec.model.7.conv.bias") < found.index(
        "dec.model.10.conv.weight"
    )  # 3, 5, 7 enlarge; 8 to 10 end


@pytest.mark.parametrize(("norm", "entries"), [("batch", ["weight", "bias", "running_mean", "running_var",
    "num_batches_tracked"]), ("layer", ["gamma", "beta"]), ("instance", [])])  # fmt: skip
def test_norms_of_the_discriminator_come_before_its_convolutions(norm, entries):
    found = names(on_meta(dataclasses.replace(NARROW, discriminator_norm=norm)), "dis")
    expected = [*(f"cnns.0.0.norm.{entry}" for entry in entries), "cnns.0.0.conv.weight", "cnns.0.0.conv.bias"]
    assert found[: len(expected)] == expected
    expected = [*(f"cnns.1.5.model.1.norm.{entry}" for entry in entries), "cnns.1.5.model.1.conv.weight"]
    start = found.index(expected[0])
    assert found[start : start + len(expected)] == expected


def test_attention_of_the_discriminator_stands_around_its_residual_blocks():
    found = names(on_meta(dataclasses.replace(NARROW, discriminator_attention=2)), "dis")
    assert [name for name in found if name.endswith("gamma")] == [
        "cnns.0.5.gamma", "cnns.0.7.gamma", "cnns.1.5.gamma", "cnns.1.7.gamma"
    ]  # fmt: skip
    assert found[-2:] == ["cnns.1.8.weight", "cnns.1.8.bias"]


# Values


def test_published_to_ours_and_back_is_the_same_tensors_in_the_same_order():
    generator = torch.Generator().manual_seed(1)
    files = {
        file: {
            name: torch.randint(-99, 99, slot.value.shape, generator=generator).to(slot.value.dtype)
            for name, slot in table.items()
        }
        for file, table in published_tables(on_meta(NARROW, 5)).items()
    }
    model, unread = DGNet(NARROW, 5), {}
    for file, table in published_tables(model).items():
        networks, more = from_published(table, files[file], source=file)
        unread |= more
        for network, state in networks.items():
            model.networks()[network].load_state_dict(state)
    again = to_published(model, unread)
    for file, state in files.items():
        assert list(again[file]) == list(state)
        assert all(torch.equal(again[file][name], value) for name, value in state.items())
        assert all(again[file][name].dtype == value.dtype for name, value in state.items())


def test_ours_to_published_and_back_is_the_same_model():
    model, again = filled(seed=0), filled(seed=1)
    files = to_published(model)
    for file, table in published_tables(again).items():
        networks, _ = from_published(table, files[file], source=file)
        for network, state in networks.items():
            again.networks()[network].load_state_dict(state)
    for name, network in model.networks().items():
        state = again.networks()[name].state_dict()
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_what_nothing_reads_is_written_as_the_published_program_makes_it():
    files = to_published(filled())
    assert files["id"]["model.fc.weight"].shape == (1000, 2048)
    for k in range(4):
        for j in (0, 1):
            norm = f"dec.model.1.model.{k}.model.{j}.norm."
            assert torch.equal(files["gen"][f"{norm}running_mean"], torch.zeros(16))
            assert torch.equal(files["gen"][f"{norm}running_var"], torch.ones(16))


def test_attention_in_residual_blocks_is_left_out_with_one_message(caplog):
    table = published_tables(on_meta(NARROW, 5))["gen"]
    state = {name: torch.zeros(slot.value.shape) for name, slot in table.items()}
    extra = [
        f"enc_content.model.4.model.{k}.nonloc.{name}" for k in range(4) for name in ("gamma", "query_conv.weight")
    ]
    extra.append("dec.model.1.model.0.value_conv.bias")
    with caplog.at_level(logging.WARNING):
        networks, _ = from_published(table, state | dict.fromkeys(extra, torch.ones(1)), source="gen.pt")
    assert [record.getMessage() for record in caplog.records] == [
        f"gen.pt: 9 tensors of self-attention in residual blocks ({extra[0]}, ...) are left out, "
        "as by the published program"
    ]
    assert set(networks) == {"structure", "decoder"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("dec.model.8.conv.bias"), r"1 missing \(dec\.model\.8\.conv\.bias\)"),
        (lambda state: state.update({"dec.model.9.conv.bias": torch.zeros(3)}), "1 left over"),
        (lambda state: state.update({"dec.model.2.gamma": torch.zeros(1)}), r"1 left over \(dec\.model\.2\.gamma\)"),
        (
            lambda state: state.update({"dec.model.1.model.0.model.0.norm.gamma": torch.zeros(16)}),
            r"1 left over \(dec\.model\.1\.model\.0\.model\.0\.norm\.gamma\)",
        ),
        (
            lambda state: state.update({"dec.model.8.conv.bias": torch.zeros(4)}),
            r"1 of another shape \(dec\.model\.8\.conv\.bias \(4,\), not \(3,\)\)",
        ),
    ],
    ids=["missing", "left-over", "attention-elsewhere", "another-norm", "reshaped"],
)
def test_a_file_that_does_not_fit_is_refused_by_name(change, message):
    table = published_tables(on_meta(NARROW, 5))["gen"]
    state = {name: torch.zeros(slot.value.shape) for name, slot in table.items()}
    change(state)
    with pytest.raises(CheckpointError, match=message) as caught:
        from_published(table, state, source="gen.pt")
    assert "\n" not in str(caught.value)


# Settings


def test_the_published_settings_are_our_defaults(caplog):
    with caplog.at_level(logging.WARNING):
        settings = published_config(yaml.safe_load(LATEST))
    assert caplog.text == ""
    assert settings.networks == NetworksConfig()
    assert settings.num_ids == 751
    assert settings.paths == {"data_root": "../Market/pytorch/"}
    assert settings.training == {
        "apex": False, "B_w": 0.2, "T_w": 1, "batch_size": 8, "beta1": 0, "beta2": 0.999, "dis.LAMBDA": 0.01,
        "dis.gan_type": "lsgan", "display_size": 16, "erasing_p": 0.5, "gamma": 0.1, "gamma2": 0.1, "gan_w": 1,
        "id_w": 1, "image_display_iter": 5000, "image_save_iter": 5000, "log_iter": 1, "lr2": 0.002, "lr_d": 1e-4,
        "lr_g": 1e-4, "lr_policy": "multistep", "max_cyc_w": 2, "max_iter": 100000, "max_teacher_w": 2, "max_w": 1,
        "num_workers": 8, "pid_w": 1, "recon_f_w": 0, "recon_id_w": 0.5, "recon_s_w": 0, "recon_x_cyc_w": 0,
        "recon_x_w": 5, "recon_xp_w": 5, "snapshot_save_iter": 10000, "step_size": 60000, "teacher": "best",
        "teacher_style": 0, "teacher_w": 0, "train_bn": True, "use_encoder_again": 0.5, "vgg_w": 0,
        "warm_iter": 30000, "warm_scale": 0.0005, "warm_teacher_iter": 30000, "weight_decay": 0.0005,
    }  # fmt: skip


def test_the_two_shipped_files_differ_in_apex_alone(tmp_path):
    (tmp_path / "latest.yaml").write_text(LATEST)
    (tmp_path / "latest-fp16.yaml").write_text(LATEST.replace("apex: false", "apex: true"))
    plain, half = published_config(tmp_path / "latest.yaml"), published_config(str(tmp_path / "latest-fp16.yaml"))
    assert half.training == plain.training | {"apex": True}
    assert half._replace(training=plain.training) == plain


def test_every_key_has_one_home():
    homes = (NETWORK_KEYS, TRAINING_KEYS, PATHS, UNREAD)
    assert STOCK.keys() <= set().union(*homes)
    assert sum(map(len, homes)) == len(set().union(*homes))


def test_keys_that_are_not_there_are_what_the_program_takes():
    settings = published_config({"ID_class": 702})
    assert settings.num_ids == 702
    assert settings.networks == NetworksConfig(last_stride=2)  # the one default that is not the stock value
    assert settings.training["T_w"] == 1


def test_unknown_keys_are_named_in_one_line_with_the_nearest(caplog):
    with caplog.at_level(logging.WARNING):
        published_config({"lr_gg": 1, "gen": {"dimm": 3, "style_dim": 128}, "colour": "red", "input_dim_b": 1})
    assert [record.getMessage() for record in caplog.records] == [
        "published settings: unknown keys, not read: "
        "lr_gg (did you mean lr_g?), gen.dimm (did you mean gen.dim?), colour"
    ]


def test_paths_are_listed_as_what_options_say(caplog):
    with caplog.at_level(logging.INFO):
        settings = published_config({"data_root": "../Duke/pytorch", "data_folder_train_a": "x"})
    assert settings.paths == {"data_folder_train_a": "x", "data_root": "../Duke/pytorch"}
    assert "data_folder_train_a, data_root" in caplog.text
    assert "--data" in caplog.text


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert published_config({"lr_g": "1e-4"}).training["lr_g"] == 1e-4
    assert yaml.safe_load("lr_g: 1e-4") == {"lr_g": "1e-4"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ID_style": "PCB"}, "ID_style: PCB: it dropped out every feature"),
        ({"gen": {"dec": "slim"}}, "gen.dec: slim: its slices never fitted"),
        ({"gen": {"dec": "fancy"}}, "gen.dec: expected one of basic, parallel, series, found 'fancy'"),
        ({"dis": {"norm": "sn"}}, "dis.norm: sn: it could not run"),
        ({"dis": {"gan_type": "wgan"}}, "dis.gan_type: wgan: its network never ran"),
        ({"single": "edge"}, "single: edge: expected gray"),
        ({"gen": {"n_res": 6}}, "gen.n_res: 6: expected 4"),
        ({"gen": {"id_dim": 1024}}, "gen.id_dim: 1024: expected 2048"),
        ({"gen": {"dim": "wide"}}, "gen.dim: expected a whole number, found 'wide'"),
        ({"gen": {"tanh": "no thanks"}}, "gen.tanh: expected true or false"),
        ({"gen": 3}, "gen: expected a group of settings, found 3"),
        ({"max_iter": 1.5}, "max_iter: expected a whole number, found 1.5"),
        ({"lr_g": True}, "lr_g: expected a number, found True"),
        ({"pool": 3}, "pool: expected a text, found 3"),
        ({"crop_image_height": 250}, "networks.image_hw: 250 x 128 must be multiples of 4"),
        ({"ID_class": 0}, "ID_class: expected the number of identities, found 0"),
    ],
    ids=str,
)
def test_what_no_published_network_can_be_made_of_is_refused(values, message):
    with pytest.raises(ConfigError, match=f"^published settings: {message}") as caught:
        published_config(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such settings file"),
        ("a: [", "cannot be read"),
        ("a: 2020-99-99", "cannot be read"),
        ("[" * 5000 + "]" * 5000, r"cannot be read \(nested too deeply\)"),
        ("- 1", "found list"),
    ],
    ids=["missing", "cut", "date", "deep", "list"],
)
def test_a_file_that_is_no_settings_is_named(tmp_path, text, message):
    file = tmp_path / "config.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        published_config(file)
    assert str(file) in str(caught.value)
    assert not is_published_settings(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"pool": "avg"}, {"pool": "avg"}),
        ({"ID_stride": 2}, {"last_stride": 2}),
        ({"ID_style": "normal"}, {"heads": "one", "last_stride": 2}),
        ({"ID_style": "normal", "norm_id": True}, {"heads": "one", "last_stride": 2, "normalise_code": True}),
        ({"crop_image_height": 384, "crop_image_width": 192}, {"image_hw": (384, 192)}),
        ({"crop_image_height": 128, "crop_image_width": 64}, {"image_hw": (128, 64), "enlarge_small": True}),
        *(
            ({"gen": {key: value}}, {name: wanted})
            for key, value, name, wanted in (
                ("activ", "relu", "activation", "relu"), ("activ", "prelu", "activation", "prelu"),
                ("activ", "selu", "activation", "selu"), ("activ", "tanh", "activation", "tanh"),
                ("pad_type", "replicate", "padding", "replicate"), ("pad_type", "zero", "padding", "zero"),
                ("init", "gaussian", "init", "gaussian"), ("init", "xavier", "init", "xavier"),
                ("init", "orthogonal", "init", "orthogonal"), ("init", "default", "init", "default"),
                ("dec", "series", "decoder_blocks", "series"), ("dec", "parallel", "decoder_blocks", "parallel"),
                ("mlp_norm", "in", "mlp_norm", "instance"), ("mlp_dim", 256, "mlp_dim", 256),
                ("dim", 8, "structure_dim", 8), ("n_downsample", 3, "n_downsample", 3),
                ("non_local", 1, "decoder_attention", True), ("tanh", True, "structure_tanh", True),
                ("dropout", 0.5, "structure_dropout", 0.5),
            )
        ),
        *(
            ({"dis": {key: value}}, {name: wanted})
            for key, value, name, wanted in (
                ("norm", "bn", "discriminator_norm", "batch"), ("norm", "in", "discriminator_norm", "instance"),
                ("norm", "ln", "discriminator_norm", "layer"), ("activ", "relu", "discriminator_activation", "relu"),
                ("pad_type", "zero", "discriminator_padding", "zero"), ("dim", 64, "discriminator_dim", 64),
                ("n_layer", 3, "discriminator_layers", 3), ("n_res", 0, "discriminator_res", 0),
                ("num_scales", 1, "num_scales", 1), ("non_local", 1, "discriminator_attention", 1),
                ("non_local", 2, "discriminator_attention", 2),
            )
        ),
    ],
    ids=str,
)  # fmt: skip
def test_every_option_has_a_setting_here_both_ways(theirs, ours):
    expected = dataclasses.replace(NetworksConfig(), **ours)
    assert published_config({"ID_stride": 1} | theirs).networks == expected
    written = yaml.safe_load(yaml.safe_dump(published_settings(expected, 702)))
    again = published_config(written)
    assert (again.networks, again.num_ids) == (expected, 702)


def test_nsgan_has_the_same_network():
    settings = published_config({"ID_stride": 1, "dis": {"gan_type": "nsgan"}})
    assert settings.networks == NetworksConfig()
    assert settings.training["dis.gan_type"] == "nsgan"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trunk": "small"}, "networks.trunk=small: the published program has no such network"),
        ({"n_res": 2}, "networks.n_res=2"),
        ({"stripes": 2}, "networks.stripes=2"),
        ({"bottleneck": 256}, "networks.bottleneck=256"),
        ({"heads": "one"}, r"networks.last_stride=1.*expected last_stride=2"),
        ({"image_hw": (128, 64)}, r"networks.enlarge_small=False"),
    ],
    ids=str,
)
def test_a_network_that_the_program_does_not_have_is_refused_by_its_setting(changes, message):
    with pytest.raises(ConfigError, match=message):
        published_settings(dataclasses.replace(NetworksConfig(), **changes), 751)


def test_our_training_settings_are_told_by_published_names():
    values = training_values(DGNetTrainConfig(batch_size=4, optim=OptimConfig(lr_generator=3e-4, gamma=0.5)))
    assert (values["batch_size"], values["lr_g"], values["gamma"], values["gamma2"]) == (4, 3e-4, 0.5, 0.1)
    # Our defaults are the published ones, but for how often something is written.
    stock = {name: value for name, value in training_values(DGNetTrainConfig()).items() if STOCK[name] != value}
    assert stock.keys() <= {"num_workers", "log_iter"}
    written = published_config(published_settings(NetworksConfig(), 751, values))
    assert {name: written.training[name] for name in values} == values


def test_a_published_training_is_one_of_ours_and_comes_back():
    published = published_config({"apex": True, "lr_policy": "step", "B_w": 0.3, "max_w": 0.7, "gen": {}, "dis": {}})
    config = config_from_dict(DGNetTrainConfig, training_tree(published, "latest.yaml"))
    assert (config.precision, config.optim.policy, config.weights.fine) == ("fp16", "step", 0.3)
    assert (config.weights.recon_appearance, config.weights.recon_structure) == (0.7, 0.7)
    again = published_config(published_settings(config.networks, 751, training_values(config)))
    assert again.training == published.training


def test_the_stock_settings_are_our_defaults_but_for_how_often_something_is_logged():
    stock = config_from_dict(DGNetTrainConfig, training_tree(published_config({"ID_stride": 1}), "latest.yaml"))
    assert settings_difference(config_dict(DGNetTrainConfig()), config_dict(stock)) == [
        "log_every: 10 -> 1",
        "num_workers: 4 -> 8",
    ]


def test_a_published_training_without_a_teacher_has_no_teacher_terms():
    config = config_from_dict(DGNetTrainConfig, training_tree(published_config({"teacher": ""}), "latest.yaml"))
    assert config.weights.teacher == 0


@pytest.mark.parametrize("key", ["recon_s_w", "teacher_w", "vgg_w"])
def test_a_weight_that_no_published_training_starts_with_is_refused(key):
    with pytest.raises(ConfigError, match=rf"latest.yaml: {key}: 0.5: expected 0"):
        training_tree(published_config({key: 0.5}), "latest.yaml")


# Optimizer states


def mark(name):
    """A number that tells a tensor's name."""
    return float(sum(ord(letter) * (place + 1) for place, letter in enumerate(name)))


def stored_optimizers(model, first_key=0):
    """A published optimizer.pt whose states hold the mark of their parameter, one number seen at every place."""
    shapes = {name: slot.value.shape for table in published_tables(model).values() for name, slot in table.items()}
    stored = {}
    for file, kinds in (
        ("gen", ("exp_avg", "exp_avg_sq")),
        ("id", ("momentum_buffer",)),
        ("dis", ("exp_avg", "exp_avg_sq")),
    ):
        state, groups, key = {}, [], first_key
        for group in published_optimizer_layout(model)[file]:
            keys = []
            for name in group:
                keys.append(key)
                if not name.startswith("model.fc."):
                    values = {kind: torch.tensor(mark(f"{kind} {name}")).expand(shapes[name]) for kind in kinds}
                    state[key] = values | ({"step": torch.tensor(70.0)} if file != "id" else {})
                key += 1 if not first_key else 17
            groups.append({"lr": 1.0, "params": keys})
        stored[file] = {"state": state, "param_groups": groups}
    return stored


@pytest.mark.parametrize("file", ["gen", "id", "dis"])
def test_optimizers_list_parameters_as_published(file):
    expected = [group["params"] for group in MARKET["optimizers"][file]]
    assert [list(group) for group in published_optimizer_layout(on_meta())[file]] == expected


@pytest.mark.parametrize("first_key", [0, 140_000_000], ids=["by-position", "by-object-id"])
def test_every_parameter_gets_its_own_state(first_key):
    model = DGNet(NARROW, 5)
    optimizers = make_optimizers(model, OptimConfig())
    states = optimizer_states_from_published(stored_optimizers(model, first_key), model, optimizers, source="o.pt")
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(states[name])
    theirs = {slot.ours: name for table in published_tables(model).values() for name, slot in table.items()}
    seen = 0
    for network, part in model.networks().items():
        optimizer = optimizers["generator" if network in ("structure", "decoder") else network]
        for key, parameter in part.named_parameters():
            state = optimizer.state[parameter]
            kinds = ("momentum_buffer",) if network == "appearance" else ("exp_avg", "exp_avg_sq")
            for kind in kinds:
                assert state[kind].shape == parameter.shape
                assert state[kind].flatten()[0] == mark(f"{kind} {theirs[f'{network}.{key}']}")
            assert network == "appearance" or state["step"] == 70
            seen += 1
    assert seen == sum(len(state["state"]) for state in states.values()) == 118 + 171 + 32


def test_settings_of_the_optimizers_stay_ours():
    model = on_meta(NARROW, 5)
    optimizers = make_optimizers(model, OptimConfig(lr_generator=0.25))
    states = optimizer_states_from_published(stored_optimizers(model), model, optimizers, source="o.pt")
    assert states["generator"]["param_groups"][0]["lr"] == 0.25


def test_steps_counted_by_an_integer_are_read():
    model = on_meta(NARROW, 5)
    stored = stored_optimizers(model)
    for state in stored["gen"]["state"].values():
        state["step"] = 70
    states = optimizer_states_from_published(stored, model, make_optimizers(model, OptimConfig()), source="o.pt")
    assert all(torch.equal(state["step"], torch.tensor(70.0)) for state in states["generator"]["state"].values())


def test_going_on_in_our_optimizers_equals_going_on_in_theirs():
    model = filled()
    for network in model.networks().values():
        network.to(torch.float64, memory_format=torch.channels_last)
    tensors = {name: value.clone() for state in to_published(model).values() for name, value in state.items()}
    theirs, gradients = {}, torch.Generator().manual_seed(3)
    layout = published_optimizer_layout(model)
    for file, groups in layout.items():
        listed = [[tensors[name].requires_grad_() for name in group] for group in groups]
        if file == "id":
            groups_of = [{"params": group, "lr": lr} for group, lr in zip(listed, (0.002, 0.02, 0.02), strict=True)]
            theirs[file] = torch.optim.SGD(groups_of, lr=0.002, momentum=0.9, weight_decay=5e-4, nesterov=True)
        else:
            theirs[file] = torch.optim.Adam(listed[0], lr=1e-4, betas=(0.0, 0.999), weight_decay=5e-4)

    trained = [name for groups in layout.values() for group in groups for name in group if "model.fc." not in name]

    def draw():
        return {name: torch.randn(tensors[name].shape, generator=gradients).double() for name in trained}

    def step_theirs(drawn):
        for name, gradient in drawn.items():
            tensors[name].grad = gradient
        for optimizer in theirs.values():
            optimizer.step()

    step_theirs(draw())
    ours = {slot.ours: name for table in published_tables(model).values() for name, slot in table.items()}
    parameters = {
        f"{network}.{key}": parameter
        for network, part in model.networks().items()
        for key, parameter in part.named_parameters()
    }
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[ours[name]].data)
    optimizers = make_optimizers(model, OptimConfig())
    stored = copy.deepcopy({file: optimizer.state_dict() for file, optimizer in theirs.items()})
    states = optimizer_states_from_published(stored, model, optimizers, source="o.pt")
    drawn = draw()
    for name, optimizer in optimizers.items():
        load_optimizer_state(optimizer, states[name], source="o.pt")
    for name, parameter in parameters.items():
        parameter.grad = torch.empty_like(parameter).copy_(drawn[ours[name]])
    for optimizer in optimizers.values():
        optimizer.step()
    step_theirs(drawn)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.data, tensors[ours[name]].data, rtol=1e-10, atol=1e-10)


def test_states_to_published_and_back_are_the_same():
    model = filled()
    optimizers = make_optimizers(model, OptimConfig())
    stored = stored_optimizers(model)
    states = optimizer_states_from_published(stored, model, optimizers, source="o.pt")
    written = optimizer_states_to_published(states, model, optimizers)
    for file, entry in stored.items():
        assert [group["params"] for group in written[file]["param_groups"]] == [
            group["params"] for group in entry["param_groups"]
        ]
        assert written[file]["state"].keys() == entry["state"].keys()
        for position, state in entry["state"].items():
            assert all(torch.equal(written[file]["state"][position][kind], value) for kind, value in state.items())
    again = optimizer_states_from_published(written, model, optimizers, source="o.pt")
    assert again.keys() == states.keys()
    for name, state in states.items():
        assert again[name]["state"].keys() == state["state"].keys()


@pytest.mark.parametrize("file", ["gen", "id", "dis"])
def test_written_groups_have_the_published_settings_and_the_rate_of_the_start(file):
    model = on_meta()
    optimizers = make_optimizers(model, OptimConfig())
    states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    for state in states.values():
        for group in state["param_groups"]:
            group["lr"] *= 0.1  # as after the first decay
    groups = optimizer_states_to_published(states, model, optimizers)[file]["param_groups"]
    for group, expected in zip(groups, MARKET["optimizers"][file], strict=True):
        assert group.pop("initial_lr") == expected["hyper"]["lr"]
        assert group.pop("lr") == pytest.approx(0.1 * expected["hyper"]["lr"])
        assert len(group.pop("params")) == len(expected["params"])
        found = {name: list(value) if isinstance(value, tuple) else value for name, value in group.items()}
        assert found == {name: value for name, value in expected["hyper"].items() if name != "lr"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: stored.pop("dis"), "no optimizer 'dis'"),
        (lambda stored: stored["gen"].pop("state"), "no optimizer 'gen'"),
        (lambda stored: stored["id"]["param_groups"].pop(), r"id has groups of \[161, 6\] parameters"),
        (lambda stored: stored["dis"]["param_groups"][0]["params"].pop(), r"dis has groups of \[31\].*have \[32\]"),
        (lambda stored: stored["gen"]["state"].pop(3), r"gen has no state for 1 parameters"),
        (
            lambda stored: stored["gen"]["state"][0].update(exp_avg=torch.zeros(3)),
            r"exp_avg of enc_content\.model\.0\.conv\.weight in gen is \(3,\), not \(2, 1, 3, 3\)",
        ),
        (
            lambda stored: stored["id"]["state"][0].update(momentum_buffer=torch.full((64, 3, 7, 7), torch.nan)),
            r"momentum_buffer of model\.conv1\.weight in id holds NaN",
        ),
    ],
    ids=["no-dis", "no-state", "one-head", "one-less", "cut", "reshaped", "nan"],
)
def test_states_of_other_networks_are_refused(change, message):
    model = on_meta(NARROW, 5)
    stored = stored_optimizers(model)
    change(stored)
    with pytest.raises(CheckpointError, match=message) as caught:
        optimizer_states_from_published(stored, model, make_optimizers(model, OptimConfig()), source="o.pt")
    assert "\n" not in str(caught.value)
