import pytest

from pipelines.stages import Stage, duration, read_record, run_stages


def counting_stage(name, calls, out, key="same"):
    product = out / f"{name}.txt"

    def work():
        calls.append(name)
        out.mkdir(parents=True, exist_ok=True)
        product.write_text(name)
        return f"made {name}"

    return Stage(name, lambda: key, work, outputs=[product])


def test_a_second_run_does_nothing_that_is_done(tmp_path):
    calls = []
    for _ in range(2):
        stages = [counting_stage("draw", calls, tmp_path), counting_stage("train", calls, tmp_path)]
        records = run_stages(stages, tmp_path)
    assert calls == ["draw", "train"]
    assert records["train"].summary == "made train"


def test_a_changed_stage_is_done_again_and_so_is_what_follows_it(tmp_path):
    calls = []
    names = ["draw", "train", "report"]
    run_stages([counting_stage(name, calls, tmp_path) for name in names], tmp_path)
    changed = [counting_stage(name, calls, tmp_path, key="new" if name == "train" else "same") for name in names]
    run_stages(changed, tmp_path)
    assert calls == [*names, "train", "report"]


def test_a_stage_whose_output_is_gone_is_done_again(tmp_path):
    calls = []
    run_stages([counting_stage("draw", calls, tmp_path)], tmp_path)
    (tmp_path / "draw.txt").unlink()
    run_stages([counting_stage("draw", calls, tmp_path)], tmp_path)
    assert calls == ["draw", "draw"]


def test_a_stage_that_failed_leaves_no_record(tmp_path):
    def fail():
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        run_stages([Stage("train", lambda: "k", fail, outputs=[])], tmp_path)
    assert read_record(tmp_path, "train") is None


def test_a_record_cut_in_half_counts_as_none(tmp_path):
    calls = []
    run_stages([counting_stage("draw", calls, tmp_path)], tmp_path)
    record = tmp_path / "stages" / "draw.json"
    record.write_text(record.read_text()[:20])
    run_stages([counting_stage("draw", calls, tmp_path)], tmp_path)
    assert calls == ["draw", "draw"]


@pytest.mark.parametrize(
    ("elapsed_s", "text"), [(7.6, "8 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (59.6, "1 min 00 s")]
)
def test_durations_are_said_as_people_say_them(elapsed_s, text):
    assert duration(elapsed_s) == text
