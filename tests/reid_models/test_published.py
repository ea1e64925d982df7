"""What a published file is, and its names in our networks; the layouts are those of the programs that write them."""

import re

import pytest

from reid_models.published import UnknownNetworkError, WeightsError, bare_names, baseline_names, mgn_names, recognise


@pytest.fixture
def shapes(layout):
    return lambda name: {key: shape for key, (shape, _) in layout(name)[0].items()}


@pytest.mark.parametrize(
    ("name", "description", "size"),
    [
        ("mgn_1-2-3", "MGN-pytorch, granularities 1-2-3", (8, 751, 256, True)),
        ("mgn_1-2-4", "the study on MGN-pytorch (classifiers without bias), granularities 1-2-4", (9, 751, 256, False)),
        (
            "mgn_1-3-4",
            "the study on MGN-pytorch (classifiers without bias), granularities 1-3-4",
            (10, 751, 256, False),
        ),
        ("net_last", "person re-id baseline, ft_net", (1, 751, 512, True)),
    ],
)
def test_a_published_file_is_recognised_with_its_size(shapes, name, description, size):
    found = recognise(shapes(name), "file")
    assert found.describe() == description
    assert (found.num_heads, found.num_ids, found.head_features, found.classifier_bias) == size


HEADS_1_2_3 = [
    "fc_id_2048_0", "fc_id_2048_1", "fc_id_2048_2", "fc_id_256_1_0", "fc_id_256_1_1", "fc_id_256_2_0", "fc_id_256_2_1",
    "fc_id_256_2_2",
]  # fmt: skip
HEADS_1_2_4 = [*HEADS_1_2_3, "fc_id_256_2_3"]
HEADS_1_3_4 = [*HEADS_1_2_3[:5], "fc_id_256_1_2", *HEADS_1_2_4[5:]]
TRUNK = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3.0"}


def ours_by_hand(theirs, heads):
    """Our name of a tensor of MGN-pytorch, from the table of its heads and its own name alone."""
    module, *rest = theirs.split(".")
    if module == "backone":
        return ".".join(["shared", TRUNK[rest[0]], *rest[1:]])
    if module in ("p1", "p2", "p3"):
        return ".".join(["branches", str(int(module[1]) - 1), {"0": "layer3", "1": "layer4"}[rest[0]], *rest[1:]])
    if module.startswith("reduction_"):
        return ".".join(["heads", module[10:], {"0": "reduce", "1": "norm"}[rest[0]], *rest[1:]])
    return ".".join(["heads", str(heads.index(module)), "classifier", *rest])


@pytest.mark.parametrize(
    ("name", "heads"), [("mgn_1-2-3", HEADS_1_2_3), ("mgn_1-2-4", HEADS_1_2_4), ("mgn_1-3-4", HEADS_1_3_4)]
)
def test_every_name_of_mgn_has_one_of_ours_in_the_files_order(shapes, name, heads):
    entries = shapes(name)
    expected = {ours_by_hand(theirs, heads): theirs for theirs in entries}
    assert len(expected) == len(entries)
    # Our network goes through its heads one by one, the original through all reductions, then all classifiers.
    ours = sorted(expected, key=lambda name: int(name.split(".")[1]) if name.startswith("heads.") else -1)
    assert ours != list(expected)
    assert list(recognise(entries, "file").file_names(ours).items()) == list(expected.items())


def test_every_name_of_the_baseline_but_its_unused_layer_has_one_of_ours(shapes):
    entries = shapes("net_last")
    published = recognise(entries, "file")
    begins = {"model.": "trunk.", "classifier.add_block.0.": "reduce.", "classifier.add_block.1.": "norm."}
    begins["classifier.classifier.0."] = "classifier."
    used = [name for name in entries if not name.startswith("model.fc.")]
    expected = {
        new + name.removeprefix(old): name for name in used for old, new in begins.items() if name.startswith(old)
    }
    assert published.file_names(expected) == expected
    assert [name for name in entries if name.startswith(published.unused)] == ["model.fc.weight", "model.fc.bias"]


def pcb_shapes(entries, parts=6):
    """The re-id baseline's PCB, from its ft_net: a classifier of 256 features for each part."""
    trunk = {name: shape for name, shape in entries.items() if name.startswith("model.")}
    head = {
        name.removeprefix("classifier."): tuple(256 if size == 512 else size for size in shape)
        for name, shape in entries.items()
        if name.startswith("classifier.")
    }
    return trunk | {f"classifier{part}.{name}": shape for part in range(parts) for name, shape in head.items()}


@pytest.mark.parametrize("parts", [4, 6])
def test_pcb_is_recognised_with_its_parts(shapes, parts):
    found = recognise(pcb_shapes(shapes("net_last"), parts), "file")
    assert found.describe() == f"person re-id baseline, PCB of {parts} parts"
    assert (found.num_ids, found.head_features, found.last_stride) == (751, 256, 1)
    ours = [f"heads.{parts - 1}.reduce.weight", "heads.0.norm.running_var", "heads.1.classifier.bias"]
    assert found.file_names(ours) == {
        "heads.0.norm.running_var": "classifier0.add_block.1.running_var",
        "heads.1.classifier.bias": "classifier1.classifier.0.bias",
        f"heads.{parts - 1}.reduce.weight": f"classifier{parts - 1}.add_block.0.weight",
    }


def test_reid_mgn_has_one_reduction_that_all_our_heads_take(shapes):
    entries = {
        re.sub(r"^backone|^reduction_0", lambda found: {"b": "backbone", "r": "reduction"}[found[0][0]], name): shape
        for name, shape in shapes("mgn_1-2-3").items()
        if not re.match(r"reduction_[1-7]", name)
    }
    found = recognise(entries, "file")
    assert (found.describe(), found.pool) == ("ReID-MGN, granularities 1-2-3", "max")
    ours = [f"heads.{head}.reduce.weight" for head in range(8)]
    assert found.file_names(["shared.conv1.weight", *ours]) == {
        "shared.conv1.weight": "backbone.0.weight",
        **dict.fromkeys(ours, "reduction.0.weight"),
    }


def test_a_plain_resnet_is_a_trunk_and_instance_normalisation_makes_it_the_ibn_one():
    resnet = {"conv1.weight": (64, 3, 7, 7), "layer4.2.conv3.weight": (2048, 512, 1, 1), "fc.weight": (1000, 2048)}
    assert recognise(resnet, "file").describe() == "torchvision's ResNet-50"
    found = recognise(resnet | {"layer1.0.bn1.IN.weight": (32,)}, "file")
    assert (found.describe(), found.trunk) == ("IBN-Net's ResNet-50-IBN-a", "resnet50_ibn_a")
    assert found.file_names(["layer1.0.bn1.IN.weight"]) == {"layer1.0.bn1.IN.weight": "layer1.0.bn1.IN.weight"}


def test_one_classifier_of_another_size_does_not_change_what_the_file_is(shapes):
    entries = shapes("mgn_1-2-3") | {"fc_id_2048_0.weight": (16, 256)}
    assert recognise(entries, "file").num_ids == 751


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mgn_1-2-3", lambda name: not name.startswith("fc_id_256_2"), "stripes cannot be counted .* found 2, 0"),
        ("mgn_1-2-3", lambda name: not (name.startswith("fc_id") and name.endswith("weight")), "has no classifier"),
        ("net_last", lambda name: not name.startswith("classifier.classifier"), "has no classifier"),
        ("net_last", lambda name: "layer4" not in name, "of no network known here; known are MGN-pytorch"),
    ],
)
def test_what_cannot_be_told_is_one_line_that_names_the_file(shapes, name, change, message):
    entries = {key: shape for key, shape in shapes(name).items() if change(key)}
    with pytest.raises(WeightsError, match=f"^some.pt: .*{message}") as caught:
        recognise(entries, "some.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "net.", "reid.module.backbone.", ""])
@pytest.mark.parametrize("inside", ["module.", "_orig_mod.", ""])
def test_what_wrappers_put_into_names_is_taken_off(shapes, prefix, inside):
    plain = shapes("net_last")
    wrapped = {f"{prefix}{name.replace('model.layer', f'model.{inside}layer')}": shape for name, shape in plain.items()}
    known, bare, notices = bare_names(wrapped, lambda shapes: recognise(shapes, "net_last"))
    assert known == recognise(plain, "net_last")
    assert list(bare.values()) == list(plain)
    assert len(notices) == bool(prefix) + bool(inside)


def test_names_that_would_become_one_are_left_as_they_are():
    with pytest.raises(UnknownNetworkError, match=r"a: 2 tensors \(x.module.w, x.w, ...\) of no network known here"):
        bare_names({"x.module.w": (1,), "x.w": (1,)}, lambda shapes: recognise(shapes, "a"))


CONFIG_TXT = """2018-08-28-10:00:00

pool: avg
height: 384
width: 128
loss: 1*CrossEntropy+2*Triplet

2018-08-29-10:00:00

pool: max
height: 256
width: 128

"""


def test_the_last_start_in_config_txt_tells_pool_and_size(shapes):
    mgn = recognise(shapes("mgn_1-2-3"), "file")
    assert (mgn.pool, mgn.image_hw, mgn.settings_from) == ("avg", (384, 128), None)
    told = mgn.with_config_txt(CONFIG_TXT, "config.txt")
    assert (told.pool, told.image_hw, told.settings_from) == ("max", (256, 128), "config.txt")
    assert mgn.with_config_txt("somebody: else\n", "config.txt") == mgn
    with pytest.raises(WeightsError, match=r"config.txt: pool 'gem', height '384', width ''; expected"):
        mgn.with_config_txt("pool: gem\nheight: 384\n", "config.txt")


def test_opts_yaml_tells_the_stride_of_the_baseline_and_is_silent_about_pcb(shapes):
    baseline = recognise(shapes("net_last"), "file")
    assert baseline.with_opts({"stride": 1, "nclasses": 751}, "opts.yaml").last_stride == 1
    assert baseline.with_opts({}, "opts.yaml").last_stride == 2
    assert recognise(pcb_shapes(shapes("net_last")), "file").with_opts({"stride": 2}, "opts.yaml").last_stride == 1
    for wrong in ({"stride": 3}, ["stride"], None):
        with pytest.raises(WeightsError, match=r"opts.yaml: expected a mapping with stride 1 or 2"):
            baseline.with_opts(wrong, "opts.yaml")


def test_any_list_of_granularities_gives_each_head_one_reduction_and_one_classifier():
    theirs, ours = zip(*mgn_names((1, 2, 3, 4)), strict=True)
    assert len(set(theirs)) == len(set(ours)) == 5 + 2 * 4 + 3 * 13
    assert ("fc_id_256_3_3.", "heads.12.classifier.") in mgn_names((1, 2, 3, 4))
    assert baseline_names()[0] == ("model.", "trunk.")
