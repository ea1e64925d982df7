"""A stage is done once, and again when what it reads or made is other; the reason is said."""

import json

import pytest

from pipelines.stages import Stage, read_record, run_stages
from reid_eval.errors import Stopped
from reid_eval.progress import duration
from reid_eval.stopping import stoppable


class Line:
    """Three stages, each of which copies what the one before made: raw.txt -> draw.txt -> train.txt -> report.txt."""

    names = ("draw", "train", "report")

    def __init__(self, out):
        self.out, self.calls, self.keys = out, [], dict.fromkeys(self.names, "same")
        self.fixed_key, self.fail = False, None
        (out / "raw.txt").write_text("raw")

    def file(self, name):
        return self.out / "raw.txt" if name == "raw" else self.out / name / f"{name}.txt"

    def work(self, name, before):
        self.calls.append(name)
        if self.fail == name:
            raise RuntimeError("killed")
        self.file(name).parent.mkdir(exist_ok=True)
        self.file(name).write_text(f"{self.file(before).read_text()} {name}")
        return f"made {name}"

    def run(self):
        self.calls.clear()
        stages = [
            Stage(
                name,
                key=lambda name=name: self.keys[name],
                work=lambda name=name, before=before: self.work(name, before),
                reads=lambda before=before: [self.file(before)],
                writes=lambda name=name: [self.out / name],
                makes=self.out / name,
                fixed_key=self.fixed_key,
            )
            for before, name in zip(("raw", *self.names), self.names, strict=False)
        ]
        run_stages(stages, self.out)
        return list(self.calls)


@pytest.fixture
def line(tmp_path):
    return Line(tmp_path)


def test_a_second_run_does_nothing_that_is_done(line):
    assert line.run() == ["draw", "train", "report"]
    assert line.run() == []
    assert read_record(line.out, "train").summary == "made train"


def test_what_follows_a_change_is_done_again_and_what_was_made_is_kept(line, capsys):
    line.run()
    line.file("raw").write_text("other")
    capsys.readouterr()
    assert line.run() == ["draw", "train", "report"]
    assert line.file("report").read_text() == "other draw train report"
    assert (line.out / "draw.old-1" / "draw.txt").read_text() == "raw draw"
    told = capsys.readouterr().err
    assert "[1/3] draw: again, since of what it reads 1 file changed (raw.txt)" in told
    assert "what it made before is kept in" in told


def test_what_becomes_the_same_again_stops_the_change(line):
    line.run()
    line.keys["train"] = "new"
    assert line.run() == ["train"]  # it makes the same as before, so the report is as it was


def test_another_key_sets_aside_only_where_it_makes_the_rest_useless(line):
    line.run()
    line.keys["train"] = "longer"
    line.run()
    assert not (line.out / "train.old-1").exists()
    line.keys["train"], line.fixed_key = "other", True
    line.run()
    assert (line.out / "train.old-1").is_dir()


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("edited")])
def test_an_output_that_is_gone_or_edited_is_made_again_and_nothing_else(line, damage, capsys):
    line.run()
    damage(line.file("train"))
    capsys.readouterr()
    assert line.run() == ["train"]
    assert line.file("train").read_text() == "raw draw train"
    assert "[2/3] train: again, since of what it made 1 file" in capsys.readouterr().err
    assert not (line.out / "train.old-1").exists()


def test_a_stage_that_was_killed_goes_on_where_it_was(line):
    line.fail = "train"
    with pytest.raises(RuntimeError):
        line.run()
    assert read_record(line.out, "train").written is None
    (line.out / "train").mkdir()
    (line.out / "train" / "half.txt").write_text("half")
    line.fail = None
    assert line.run() == ["train", "report"]
    assert (line.out / "train" / "half.txt").exists()


def test_a_stage_that_was_killed_begins_anew_when_what_it_reads_has_changed(line):
    line.fail = "train"
    with pytest.raises(RuntimeError):
        line.run()
    (line.out / "train").mkdir()
    (line.out / "train" / "half.txt").write_text("half")
    line.fail = None
    line.file("raw").write_text("other")
    assert line.run() == ["draw", "train", "report"]
    assert (line.out / "train.old-1" / "half.txt").exists()
    assert not (line.out / "train" / "half.txt").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:20],
        lambda text: text.replace('"raw draw', '"x'),
        lambda text: text.replace("same", "sane"),
        lambda text: json.dumps({**json.loads(text), "format": 1}),
        lambda text: "[]",
        lambda text: "[" * 100_000,
    ],
)
def test_a_record_that_cannot_be_trusted_counts_as_none(line, damage):
    line.run()
    record = line.out / "stages" / "draw.json"
    text = record.read_text()
    record.write_text(damage(text))
    again = [] if record.read_text() == text else ["draw"]
    assert line.run() == again


def test_between_two_stages_a_stop_is_heard(line):
    with stoppable(max_hours=1e-9), pytest.raises(Stopped, match="what is finished is kept"):
        line.run()
    assert line.calls == []


@pytest.mark.parametrize(
    ("elapsed_s", "text"), [(7.6, "8 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (59.6, "1 min 00 s")]
)
def test_durations_are_said_as_people_say_them(elapsed_s, text):
    assert duration(elapsed_s) == text
