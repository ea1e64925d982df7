"""Folders of the published program: used wherever a run's folder is, and written from a run."""

import dataclasses
import json
import logging
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from dgnet_gen.cli import main
from dgnet_gen.exchange import PublishedFolder, export_run, load_train_config
from dgnet_gen.model import DGNet, NetworksConfig
from dgnet_gen.plan import plan_training
from dgnet_gen.published import published_optimizer_layout, published_tables
from dgnet_gen.settings import DGNetTrainConfig, LossWeights, OptimConfig
from dgnet_gen.step import make_optimizers
from dgnet_gen.training import train_dgnet
from reid_eval.errors import OutputError
from reid_models.cli import main as reid_models_main
from reid_models.config import ConfigError, config_dict
from reid_models.data.generated import read_manifest
from reid_models.data.index import DatasetIndex
from reid_models.data.synthetic import make_toy_dataset
from reid_models.optimizers import load_optimizer_state
from reid_models.runs import Checkpoint, CheckpointError, RunDir
from reid_models.runtime import Runtime
from reid_models.weights import WeightsError

# The published trunk, which has no small form, and everything else as small as it goes.
NARROW = NetworksConfig(
    image_hw=(64, 32), enlarge_small=True, structure_dim=2, mlp_dim=6, discriminator_dim=2, discriminator_res=1,
    num_scales=1,
)  # fmt: skip
SETTINGS = """
ID_class: 5
ID_stride: 1
crop_image_height: 64
crop_image_width: 32
gen: {dim: 2, mlp_dim: 6}
dis: {dim: 2, n_res: 1, num_scales: 1}
data_root: ../Market/pytorch/
"""
CONFIG = DGNetTrainConfig(
    networks=NARROW,
    weights=LossWeights(teacher=0.0),
    trunk_weights="none",
    batch_size=2,
    max_iter=2,
    pad_px=1,
    num_workers=0,
    checkpoint_every=1,
)


def dgnet_gen(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def published_files(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """What a training of the published program could have written: weights that depend on the name."""
    generator = torch.Generator().manual_seed(seed)
    files: dict[str, dict[str, torch.Tensor]] = {}
    with torch.device("meta"):
        tables = published_tables(DGNet(NARROW, 5))
    for file, table in tables.items():
        files[file] = OrderedDict()
        for name, slot in table.items():
            shape = slot.value.shape
            drawn = torch.randn(shape, generator=generator)
            match name.rsplit(".", 1)[1]:
                case "num_batches_tracked":
                    value = torch.tensor(seed)
                case "running_var":
                    value = 1 + drawn.abs()
                case "weight" if len(shape) > 1:
                    value = drawn * (2 / shape[1:].numel()) ** 0.5
                case _:
                    value = (1 if name.endswith(("weight", "gamma")) else 0) + 0.1 * drawn
            files[file][name] = value
        files[file]._metadata = {"": {"version": 1}}  # as PyTorch hangs on to a state dict
    return files


def write_published(folder: Path, iterations=(10_000, 100_000)) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(SETTINGS)
    for iteration in iterations:
        for file, state in published_files(iteration).items():
            # The original is from before PyTorch's zip format.
            target = folder / "checkpoints" / f"{file}_{iteration:08d}.pt"
            torch.save({"a": state}, target, _use_new_zipfile_serialization=False)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A published folder with two iterations, and a toy dataset; not to be written to."""
    root = tmp_path_factory.mktemp("sound")
    write_published(root / "original")
    make_toy_dataset(root / "toy", ids=5, cameras=2, per_camera=1, image_hw=(64, 32))
    return root


@pytest.fixture
def original(sound, tmp_path):
    """A copy of the newest iteration that a test may spoil."""
    for file in ("config.yaml", *(f"checkpoints/{name}_00100000.pt" for name in ("gen", "id", "dis"))):
        (tmp_path / "original" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "original" / file).write_bytes((sound / "original" / file).read_bytes())
    return tmp_path / "original"


@pytest.fixture(scope="module")
def trained(sound, tmp_path_factory):
    """A run of ours with the published networks."""
    out = tmp_path_factory.mktemp("trained") / "run"
    return train_dgnet(CONFIG, DatasetIndex.open(sound / "toy"), out, Runtime.from_environment("cpu", "fp32")).path


def images(count=2):
    return torch.randn(count, 3, *NARROW.image_hw, generator=torch.Generator().manual_seed(0))


def edit(file, change):
    content = torch.load(file)
    change(content)
    torch.save(content, file)


# Use


def test_a_published_folder_gives_its_own_networks(sound):
    for which, iteration in (("last", 100_000), (10_000, 10_000)):
        model = DGNet.load(sound / "original", which, device="cpu")
        assert (model.iteration, model.num_ids, model.config) == (iteration, 5, NARROW)
        assert not any(network.training for network in model.networks().values())
        files = published_files(iteration)
        assert torch.equal(model.decoder.finish[2].conv.bias, files["gen"]["dec.model.8.conv.bias"])
        assert torch.equal(model.appearance_encoder.fine.norm.running_var,
                           files["id"]["classifier2.add_block.1.running_var"])  # fmt: skip
        assert torch.equal(model.discriminator.scales[0][6].bias, files["dis"]["cnns.0.6.bias"])


def test_iterations_of_a_published_folder_are_told_apart(sound):
    ids = {DGNet.load(sound / "original", which, device="cpu").checkpoint_id for which in (10_000, "last")}
    assert len(ids) == 2


def test_what_nothing_reads_has_no_influence(sound, original):
    before = DGNet.load(original, device="cpu")

    def spoil(content):
        for name, value in content["a"].items():
            if ".norm.running_" in name or name.startswith("model.fc."):
                value.fill_(1e6)

    for file in ("gen", "id"):
        edit(original / "checkpoints" / f"{file}_00100000.pt", spoil)
    after = DGNet.load(original, device="cpu")
    assert torch.equal(after.decode(after.encode(images())), before.decode(before.encode(images())))


def test_files_written_from_several_gpus_are_read(original):
    file = original / "checkpoints" / "dis_00100000.pt"
    edit(file, lambda content: content.update(a={f"module.{name}": value for name, value in content["a"].items()}))
    model = DGNet.load(original, device="cpu")
    assert torch.equal(model.discriminator.scales[0][6].bias, published_files(100_000)["dis"]["cnns.0.6.bias"])


def test_pictures_need_no_discriminator_but_it_is_said(original, caplog):
    (original / "checkpoints" / "dis_00100000.pt").unlink()
    with caplog.at_level(logging.WARNING):
        DGNet.load(original, device="cpu")
    assert "dis_00100000.pt: not there; the discriminator stays random" in caplog.text
    with pytest.raises(CheckpointError, match=r"dis_00100000\.pt: not there; iteration 100000 needs gen, id, dis"):
        PublishedFolder.open(original).load(device="cpu")


def test_generate_swap_and_swap_truth_take_a_published_folder(sound, tmp_path):
    out = tmp_path / "fake"
    arguments = ("--run", sound / "original", "--which-epoch", 10_000, "--data", sound / "toy", "--device", "cpu")
    result = dgnet_gen("generate", *arguments, "--out", out, "--count", 3, "--json")
    assert result.exit_code == 0, result.output
    card, rows = read_manifest(out)
    assert (card["iteration"], card["image_hw"], len(rows)) == (10_000, [64, 32], 3)
    result = dgnet_gen("swap-truth", out, "--toy", sound / "toy")
    assert result.exit_code == 0, result.output
    result = dgnet_gen("swap", *arguments, "--rows", 1, "--cols", 2, "--out", tmp_path / "swap.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "swap.png").is_file()


def test_commands_ask_for_the_data_that_a_published_folder_does_not_tell(sound):
    for command in ("generate", "swap"):
        result = dgnet_gen(command, "--run", sound / "original")
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "a published folder, and where its data lie here is not known; give --data" in result.stderr


# Refusals


def refused(folder, error, message, which="last"):
    """One line that says this."""
    with pytest.raises(error, match=message) as caught:
        DGNet.load(folder, which, device="cpu")
    assert "\n" not in str(caught.value)


def test_an_iteration_that_is_not_there_lists_those_that_are(sound):
    refused(sound / "original", CheckpointError, r"no checkpoint of iteration 5; there are 10000, 100000", 5)


def test_a_missing_file_of_an_iteration_is_named(original):
    (original / "checkpoints" / "id_00100000.pt").unlink()
    refused(original, CheckpointError, r"id_00100000\.pt: not there; iteration 100000 needs gen, id, dis")


def test_a_folder_without_settings_or_generators_is_named(original, tmp_path):
    (original / "config.yaml").unlink()
    refused(original, CheckpointError, r"config\.yaml: not there; the published program copies its settings")
    refused(tmp_path / "nothing", CheckpointError, "nothing: no run here")
    with pytest.raises(CheckpointError, match=r"nothing: no checkpoints/gen_ITERATION\.pt here"):
        PublishedFolder.open(tmp_path / "nothing")


@pytest.mark.parametrize("file", ["gen", "id", "dis"])
def test_a_file_that_does_not_fit_is_refused_with_some_names(original, file):
    target = original / "checkpoints" / f"{file}_00100000.pt"
    edit(target, lambda content: content["a"].popitem())
    edit(target, lambda content: content["a"].update({"stranger.weight": torch.zeros(1)}))
    refused(
        original, CheckpointError, rf"{file}_00100000\.pt: does not fit.*1 missing.*1 left over \(stranger\.weight\)"
    )


def test_another_number_of_identities_is_said_with_both_numbers(original):
    (original / "config.yaml").write_text(SETTINGS.replace("ID_class: 5", "ID_class: 751"))
    refused(original, CheckpointError, r"its classifier is of 5 identities, but ID_class in .*config\.yaml is 751")


def test_settings_of_other_widths_do_not_fit(original):
    (original / "config.yaml").write_text(SETTINGS.replace("mlp_dim: 6", "mlp_dim: 7"))
    refused(
        original, CheckpointError, r"gen_00100000\.pt: .*of another shape \(mlp_w1\.model\.0\.fc\.weight \(6, 2048\)"
    )


def test_settings_that_name_no_network_are_refused(original):
    (original / "config.yaml").write_text(SETTINGS + "ID_style: PCB\n")
    refused(original, ConfigError, r"config\.yaml: ID_style: PCB")


@pytest.mark.parametrize("file", ["gen", "id", "dis"])
def test_a_weight_that_is_not_finite_is_refused(original, file):
    edit(
        original / "checkpoints" / f"{file}_00100000.pt",
        lambda content: next(iter(content["a"].values())).fill_(torch.nan),
    )
    refused(original, WeightsError, rf"{file}_00100000\.pt: .* holds NaN or infinity")


class Bomb:
    """What a pickle may hold that a weight file must not."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_a_file_that_would_run_code_is_refused_and_does_not_run(original):
    (original / "checkpoints" / "gen_00100000.pt").write_bytes(pickle.dumps({"a": Bomb()}, protocol=2))
    refused(original, WeightsError, r"gen_00100000\.pt: ")


def test_a_file_cut_in_half_is_refused(original):
    file = original / "checkpoints" / "id_00100000.pt"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(original, WeightsError, r"id_00100000\.pt: damaged or no weight file")


def test_a_file_without_the_published_entry_is_said(original):
    file = original / "checkpoints" / "gen_00100000.pt"
    torch.save({"b": {}}, file)  # as the successor writes its second generator
    refused(original, CheckpointError, r"gen_00100000\.pt: expected a state dict under 'a', found b")


# Export


def test_a_run_comes_back_from_its_export_as_the_same_model(trained, tmp_path):
    exported = export_run(trained, "last", tmp_path / "ours")
    assert exported.files == [
        "config.yaml",
        *(f"checkpoints/{name}.pt" for name in ("gen_00000002", "id_00000002", "dis_00000002", "optimizer")),
    ]
    run, again = DGNet.load(trained, device="cpu"), DGNet.load(tmp_path / "ours", device="cpu")
    assert (again.config, again.num_ids, again.iteration) == (run.config, run.num_ids, 2)
    for name, network in run.networks().items():
        state = again.networks()[name].state_dict()
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_exported_files_have_the_published_form(trained, tmp_path):
    export_run(trained, "last", tmp_path / "ours")
    with torch.device("meta"):
        tables = published_tables(DGNet(NARROW, 3))  # three of the five toy people are for training
    for file, table in tables.items():
        content = torch.load(tmp_path / "ours" / "checkpoints" / f"{file}_00000002.pt")
        assert list(content) == ["a"]
        assert list(content["a"]) == list(table)
        for name, slot in table.items():
            assert (content["a"][name].shape, content["a"][name].dtype) == (slot.value.shape, slot.value.dtype)
            assert content["a"][name].is_contiguous()
    settings = yaml.safe_load((tmp_path / "ours" / "config.yaml").read_text())
    assert (settings["ID_class"], settings["batch_size"], settings["gen"]["dim"]) == (3, 2, 2)
    assert isinstance(settings["beta1"], float)  # an integer here keeps the published program from starting
    optimizers = torch.load(tmp_path / "ours" / "checkpoints" / "optimizer.pt")
    assert list(optimizers) == ["gen", "id", "dis"]


def test_optimizer_states_come_back_from_an_export(trained, tmp_path):
    export_run(trained, "last", tmp_path / "ours")
    folder = PublishedFolder.open(tmp_path / "ours")
    model = folder.load(device="cpu")
    states = folder.optimizer_states(model, make_optimizers(model, CONFIG.optim))
    saved = RunDir.open(trained).load().optimizers
    for name, state in saved.items():
        assert states[name]["state"].keys() == state["state"].keys()
        for position, values in state["state"].items():
            assert all(torch.equal(states[name]["state"][position][kind], value) for kind, value in values.items())


def test_a_published_folder_comes_back_from_a_run_of_ours(sound, tmp_path):
    model = DGNet.load(sound / "original", device="cpu")
    config = dataclasses.replace(CONFIG, networks=model.config)
    run = RunDir.create(tmp_path / "run", config, kind="dgnet", made_by={"num_ids": 5})
    states = {name: network.state_dict() for name, network in model.networks().items()}
    run.save(Checkpoint("dgnet", model.iteration, config_dict(config), states, made_by={"num_ids": 5}))
    exported = export_run(run.path, "last", tmp_path / "again")
    assert "checkpoints/optimizer.pt" not in exported.files
    with torch.device("meta"):
        tables = published_tables(model)
    for file, state in published_files(100_000).items():
        content = torch.load(tmp_path / "again" / "checkpoints" / f"{file}_00100000.pt")["a"]
        assert list(content) == list(state)
        assert all(torch.equal(content[name], value) for name, value in state.items() if tables[file][name].ours)
    seen = model.decode(model.encode(images()))
    assert seen.isfinite().all()
    for folder in (run.path, tmp_path / "again"):
        again = DGNet.load(folder, device="cpu")
        assert torch.equal(again.decode(again.encode(images())), seen)
        assert torch.equal(again.reid_features(images()), model.reid_features(images()))


def test_an_export_replaces_nothing_unasked(trained, tmp_path):
    (tmp_path / "ours" / "checkpoints").mkdir(parents=True)
    there = tmp_path / "ours" / "checkpoints" / "id_00000002.pt"
    there.write_text("years of work")
    with pytest.raises(OutputError, match=r"id_00000002\.pt: exists already; .*--overwrite"):
        export_run(trained, "last", tmp_path / "ours")
    assert [path.name for path in (tmp_path / "ours").rglob("*.*")] == ["id_00000002.pt"]
    assert there.read_text() == "years of work"
    export_run(trained, "last", tmp_path / "ours", overwrite=True)
    assert DGNet.load(tmp_path / "ours", device="cpu").iteration == 2


def test_an_export_never_replaces_what_it_reads(trained):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="which this command reads"):
        export_run(trained, "last", trained, overwrite=True)
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_disk_that_fills_up_leaves_no_half_export(trained, tmp_path, monkeypatch):
    save, written = torch.save, []

    def full_at_the_third_file(content, stream, **options):
        written.append(stream)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        save(content, stream, **options)

    monkeypatch.setattr(torch, "save", full_at_the_third_file)
    with pytest.raises(OutputError, match="No space left on device"):
        export_run(trained, "last", tmp_path / "ours")
    assert [path for path in (tmp_path / "ours").rglob("*") if path.is_file()] == []


def test_a_published_folder_needs_no_export(sound, tmp_path):
    with pytest.raises(CheckpointError, match="original: is a folder of the published program already"):
        export_run(sound / "original", "last", tmp_path / "again")


def test_a_network_that_the_program_does_not_have_is_not_exported(tmp_path):
    config = dataclasses.replace(CONFIG, networks=dataclasses.replace(NARROW, trunk="small", trunk_width=2))
    run = RunDir.create(tmp_path / "run", config, kind="dgnet", made_by={"num_ids": 5})
    model = DGNet(config.networks, 5)
    states = {name: network.state_dict() for name, network in model.networks().items()}
    run.save(Checkpoint("dgnet", 2, config_dict(config), states, made_by={"num_ids": 5}))
    with pytest.raises(ConfigError, match=r"networks\.trunk=small: the published program has no such network"):
        export_run(run.path, "last", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_the_command_exports(trained, tmp_path):
    arguments = ("export", "--run", trained, "--which", 1, "--format", "original", "--out", tmp_path / "ours")
    result = dgnet_gen(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["iteration"] == 1
    assert PublishedFolder.open(tmp_path / "ours").iterations() == [1]
    result = dgnet_gen(*arguments)
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    assert dgnet_gen("export", "--run", trained, "--which", "best", "--out", tmp_path / "best").exit_code == 0
    result = dgnet_gen("export", "--run", trained, "--which", "newest", "--out", tmp_path / "more")
    assert result.exit_code == 1
    assert "--which newest: expected a number of iterations, last, or best" in result.stderr


def test_optimizer_states_belong_to_the_newest_iteration(sound):
    folder = PublishedFolder.open(sound / "original")
    model = folder.load(10_000, device="cpu")
    with pytest.raises(CheckpointError, match="states of the newest iteration, 100000, not of 10000"):
        folder.optimizer_states(model, make_optimizers(model, CONFIG.optim))
    model = folder.load(device="cpu")
    with pytest.raises(WeightsError, match=r"optimizer\.pt: no such weight file"):
        folder.optimizer_states(model, make_optimizers(model, CONFIG.optim))


# Going on from a published training


def write_optimizers(folder, layout, shapes):
    """The states that the published program could have written beside them: numbers in the plain order of memory."""
    generator, stored = torch.Generator().manual_seed(4), {}
    for file, groups in layout.items():
        state, written, count = {}, [], 0
        for group in groups:
            for place, name in enumerate(group, start=count):
                if name.startswith("model.fc."):
                    continue
                kinds = ("momentum_buffer",) if file == "id" else ("exp_avg", "exp_avg_sq")
                state[place] = {kind: torch.rand(shapes[name], generator=generator) for kind in kinds}
                state[place] |= {} if file == "id" else {"step": 100_000}
            written.append({"lr": 1e-4, "params": list(range(count, count + len(group)))})
            count += len(group)
        stored[file] = {"state": state, "param_groups": written}
    torch.save(stored, folder / "checkpoints" / "optimizer.pt", _use_new_zipfile_serialization=False)
    return stored


def test_a_step_from_a_published_folder_is_the_step_of_the_formula(original):
    folder = PublishedFolder.open(original)
    model = folder.load(device="cpu")
    layout = published_optimizer_layout(model)
    tables = published_tables(model)
    shapes = {name: slot.value.shape for table in tables.values() for name, slot in table.items()}
    stored = write_optimizers(original, layout, shapes)
    optimizers = make_optimizers(model, OptimConfig())
    states = folder.optimizer_states(model, optimizers)
    for network in model.networks().values():  # as a training lays them
        network.to(torch.float64, memory_format=torch.channels_last)
    for name, optimizer in optimizers.items():
        load_optimizer_state(optimizer, states[name], source="original")
    parameters = {
        f"{network}.{key}": parameter
        for network, part in model.networks().items()
        for key, parameter in part.named_parameters()
    }
    generator, expected = torch.Generator().manual_seed(5), {}
    for file, groups in layout.items():
        names = [pair for group in groups for pair in group.items()]
        for place, (theirs, ours) in enumerate(names):
            if ours is None:
                continue
            weight = parameters[ours].detach().clone().contiguous()
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            parameters[ours].grad = torch.empty_like(parameters[ours]).copy_(drawn)
            state = {kind: torch.as_tensor(value).double() for kind, value in stored[file]["state"][place].items()}
            gradient = drawn + 5e-4 * weight
            if file == "id":
                lr = 0.002 if theirs.startswith("model.") else 0.02
                expected[ours] = weight - lr * (gradient + 0.9 * (0.9 * state["momentum_buffer"] + gradient))
            else:  # Adam without a first moment: beta1 is 0
                square = 0.999 * state["exp_avg_sq"] + 0.001 * gradient**2
                unbiased = square / (1 - 0.999**100_001)
                expected[ours] = weight - 1e-4 * gradient / (unbiased.sqrt() + 1e-8)
    for optimizer in optimizers.values():
        optimizer.step()
    for name, value in expected.items():
        torch.testing.assert_close(parameters[name].detach().contiguous(), value, rtol=1e-10, atol=1e-10)


def test_exported_states_lie_as_the_published_program_writes_them(trained, tmp_path):
    export_run(trained, "last", tmp_path / "ours")
    stored = torch.load(tmp_path / "ours" / "checkpoints" / "optimizer.pt")
    tensors = [value for entry in stored.values() for state in entry["state"].values() for value in state.values()]
    assert all(value.is_contiguous() for value in tensors)


@pytest.fixture(scope="module")
def stopped(sound, tmp_path_factory):
    """A run of two iterations without dropout, whose state no folder of theirs holds; its settings, and its export."""
    networks = dataclasses.replace(NARROW, dropout_primary=0.0, dropout_fine=0.0)
    config = dataclasses.replace(CONFIG, networks=networks, checkpoint_every=10, sample_every=10)
    root = tmp_path_factory.mktemp("stopped")
    train_dgnet(config, DatasetIndex.open(sound / "toy"), root / "run", Runtime.from_environment("cpu", "fp32"))
    export_run(root / "run", "last", root / "theirs")
    return dataclasses.replace(config, max_iter=4), PublishedFolder.open(root / "theirs")


def test_a_training_goes_on_from_a_published_folder_as_it_would_have_gone_on_itself(sound, stopped, tmp_path):
    config, folder = stopped
    data, runtime = DatasetIndex.open(sound / "toy"), Runtime.from_environment("cpu", "fp32")
    ours = train_dgnet(config, data, tmp_path / "straight", runtime).load()
    # Their settings do not hold ours about dropout.
    folder = PublishedFolder(folder.path, folder.config._replace(networks=config.networks))
    theirs = train_dgnet(config, data, tmp_path / "on", runtime, begin_with=folder).load()
    assert theirs.made_by["begun_with"] == {"folder": str(folder.path.resolve()), "iteration": 2}
    assert ours.iteration == theirs.iteration == 4
    for network, state in ours.networks.items():
        for name, value in state.items():
            torch.testing.assert_close(theirs.networks[network][name], value)


@pytest.mark.parametrize(
    ("folder", "setting", "message"),
    [
        ("theirs", "max_iter=2", "has done 2 of max_iter 2; set max_iter higher"),
        ("theirs", "networks.mlp_dim=8", "has other networks (mlp_dim: 6 -> 8"),
        ("original", "max_iter=200000", "is of 5 people, the training pictures in"),
    ],
)
def test_going_on_refuses_what_does_not_belong_together(sound, stopped, tmp_path, folder, setting, message):
    begin = sound / "original" if folder == "original" else stopped[1].path
    arguments = ["--data", sound / "toy", "--device", "cpu", "--out", tmp_path / "run"]
    arguments += [part for text in ("weights.teacher=0", "batch_size=2", setting) for part in ("--set", text)]
    result = dgnet_gen("train", "--begin-with", begin, *arguments)
    assert (result.exit_code, message in result.stderr) == (1, True), result.stderr
    assert not (tmp_path / "run").exists()


def test_the_published_settings_file_trains_as_it_is(sound, tmp_path):
    settings = tmp_path / "latest.yaml"
    settings.write_text(SETTINGS + "teacher: ''\nbatch_size: 2\nmax_iter: 1\nnum_workers: 0\nbananas: 3\n")
    arguments = ["--data", sound / "toy", "--device", "cpu", "--set", "trunk_weights=none"]
    result = dgnet_gen("train", "--config", settings, *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    model = DGNet.load(tmp_path / "run", device="cpu")
    assert model.num_ids == DatasetIndex.open(sound / "toy").split("train_all").num_ids  # whatever ID_class says
    assert (model.image_hw, model.config.mlp_dim) == ((64, 32), 6)


def test_a_plan_of_going_on_counts_what_is_left(sound, stopped):
    config, folder = stopped
    folder = PublishedFolder(folder.path, folder.config._replace(networks=config.networks))
    runtime = Runtime.from_environment("cpu", "fp32")
    plan = plan_training(config, DatasetIndex.open(sound / "toy"), runtime, begin_with=folder)
    assert plan.steps == config.max_iter - 2


@pytest.mark.parametrize("content", ["", "# nothing changed\n"])
def test_a_settings_file_of_ours_may_be_empty(tmp_path, content):
    file = tmp_path / "ours.yaml"
    file.write_text(content)
    assert load_train_config(file) == DGNetTrainConfig()


def test_a_published_folder_is_asked_for_its_data(sound):
    result = CliRunner().invoke(reid_models_main, ["extract", "--run", str(sound / "original"), "--device", "cpu"])
    assert result.exit_code == 1
    assert "original: does not tell where its data is; give it with --data" in result.stderr
