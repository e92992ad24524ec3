"""scripts/prepare.py and scripts/train.py as commands: output, files, resuming, and other ways to start."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from gnmt.checkpoint.file import read_checkpoint
from gnmt.config.cli import CONFIG_FOLDER
from gnmt.config.validate import check_config
from gnmt.training.train_metrics import UPDATE_RATIO_TAG

SCALARS = {
    "train/loss",
    "train/learning_rate",
    "train/gradient_norm",
    "train/gradient_norm_max",
    "train/loss_max",
    "train/skipped_updates",
    "train/data_wait_fraction",
    "train/seconds",
    "train/tokens_per_second",
    "train/padding_fraction",
    "dev/loss",
    "dev/perplexity",
    "dev/bleu",
    "dev/chrf",
    "dev/chrfpp",
    "dev/gleu",
    "dev/attention_entropy",
    "dev_by_tokens/loss",
    "dev_by_tokens/bleu",
}

GROUPS = ("decoding", "loss", "model", "optimizer", "schedule", "tokenizer")
CHOICES = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONFIG_FOLDER / group).glob("*.yaml"))]
# These need a checkpoint or a file.
CHOICES = [choice for choice in CHOICES if choice not in ("decoding=recorded", "tokenizer=existing")]


def events_of(folder: Path) -> Any:
    """Return all TensorBoard events of a run."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    events.Reload()
    return events


def scalar_steps(folder: Path, tag: str) -> list[int]:
    return [point.step for point in events_of(folder).Scalars(tag)]


def checkpoint_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


# Files and messages of a run


def test_a_run_leaves_its_folder_and_the_preprocessed_text_and_nothing_else(tiny) -> None:
    assert {path.name for path in tiny.home.iterdir()} == {"runs", "preprocessed", "finished.json"}
    assert [path.name for path in (tiny.home / "runs").iterdir()] == ["tiny"]
    names = {path.name for path in tiny.folder.iterdir() if not path.name.startswith("events.")}
    assert names == {"config.json", "overrides.json", "train.log", "checkpoints", "last.pt", "best.pt"}
    assert checkpoint_names(tiny.folder) == ["step_00000002.pt", "step_00000004.pt"]
    assert (tiny.folder / "last.pt").resolve().name == "step_00000004.pt"


def test_a_run_is_repeated_from_its_folder_with_other_settings(tiny, run_command, tmp_path) -> None:
    """Its config.json as a config file was not found, or ended in a traceback."""
    new = ["name=again", "seed=7", "schedule.total_steps=4", "trainer.max_steps=2"]
    command = ["train", f"from_run={tiny.folder}", *new]
    done = run_command(*command, cwd=tmp_path)
    assert done.code == 0, done.err
    assert f"the config is that of {tiny.folder}, except for what this command overrides" in done.err
    recorded, repeated = (
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for folder in (tiny.folder, tmp_path / "runs" / "again")
    )
    assert repeated["model"] == recorded["model"]
    assert (repeated["seed"], repeated["trainer"]["max_steps"], repeated["schedule"]["total_steps"]) == (7, 2, 4)
    assert repeated["schedule"]["warmup_steps"] == recorded["schedule"]["warmup_steps"] == 0
    assert run_command(*command, cwd=tmp_path).code == 0, "the same command resumes the new run"
    chained = run_command("train", "from_run=runs/again", "name=third", "trainer.max_steps=1", cwd=tmp_path)
    assert chained.code == 0, chained.err
    third = json.loads((tmp_path / "runs" / "third" / "config.json").read_text(encoding="utf-8"))
    assert (third["seed"], third["schedule"]["total_steps"]) == (7, 4)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("runs/missing", 'from_run: found "runs/missing", allowed is the folder of a run'),
        (".", "holds no overrides.json, so it is no run of train.py"),
        ("", "from_run: is empty; give the folder of a run, as from_run=runs/demo"),
        ("[a,b]", 'from_run: found ["a", "b"], allowed is the folder of one run'),
        ("a,b", "from_run=a,b: found several folders, allowed is one: its overrides are read before a sweep begins"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("-m",)])
def test_from_run_needs_the_folder_of_a_run(run_command, tmp_path, folder, message, flags) -> None:
    """Once, a sweep over folders ended in a traceback, and an empty value was reported as "."."""
    done = run_command("train", *flags, f"from_run={folder}", "name=again", cwd=tmp_path)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "runs").exists()


def test_a_run_is_repeated_with_another_choice_of_a_group(run_command, tmp_path) -> None:
    """The recorded key that the new choice lacks could not be removed, and the message named a key nobody had given."""
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "overrides.json").write_text('["schedule.total_steps=9", "seed=3"]', encoding="utf-8")
    command = ["train", "from_run=runs/x", "name=y", "schedule=constant", "--cfg", "job"]
    refused = run_command(*command, cwd=tmp_path)
    assert refused.code == 2
    assert "schedule.total_steps: is no key of this config" in refused.err
    assert "(from_run sets it; '~schedule.total_steps' removes it)" in refused.err
    done = run_command(*command, "~schedule.total_steps", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "total_steps: 9" not in done.out
    assert "\nseed: 3\n" in done.out


def test_from_run_without_another_name_is_refused(tiny, run_command) -> None:
    before = (tiny.folder / "config.json").read_bytes()
    done = run_command("train", "from_run=runs/tiny", "name=tiny", cwd=tiny.home)
    assert done.code == 2
    assert "the new run would be written to runs/tiny too: give it another name" in done.err
    assert (tiny.folder / "config.json").read_bytes() == before


@pytest.mark.parametrize("name", ["name=again", "seed=7"])
def test_a_run_made_by_from_run_resumes_without_the_other_run(run_command, tiny, tmp_path, name) -> None:
    """Its own folder records all overrides. Once, the command failed when the other run's folder was gone."""
    run = tiny.copied_to(tmp_path)
    preprocessed = run.overrides[-1]
    command = ["train", "from_run=runs/tiny", name, preprocessed, "trainer.max_steps=1"]
    done = run_command(*command, cwd=tmp_path)
    assert done.code == 0, done.err
    shutil.rmtree(run.folder)
    [folder] = (tmp_path / "runs").iterdir()
    done = run_command(*command[:-1], "trainer.max_steps=3", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "2 updates from update 1" in done.err
    assert "runs/tiny holds no config.json, so the config is not compared with it" in done.err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]
    refused = run_command("train", "from_run=runs/tiny", "name=other", cwd=tmp_path)
    assert refused.code == 2
    assert 'from_run: found "runs/tiny", allowed is the folder of a run' in refused.err


def test_from_run_works_without_the_config_of_the_other_run(run_command, tiny, tmp_path) -> None:
    """Once, it failed with "[Errno 2]". A damaged config is named."""
    run = tiny.copied_to(tmp_path)
    config = run.folder / "config.json"
    command = ["train", "from_run=runs/tiny", "name=again", run.overrides[-1], "trainer.max_steps=1"]
    config.write_text("{", encoding="utf-8")
    refused = run_command(*command, cwd=tmp_path)
    assert refused.code == 2
    assert "from_run: runs/tiny/config.json is not valid JSON: " in refused.err
    config.unlink()
    done = run_command(*command, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "runs/tiny holds no config.json, so the config is not compared with it" in done.err


def test_stdout_names_the_result_and_its_files(tiny) -> None:
    best, checkpoint, board = tiny.printed.out.splitlines()
    assert re.fullmatch(r"best on dev, at update [24] of 4: .*dev/bleu \d+\.\d\d.*", best)
    assert checkpoint == "checkpoint: runs/tiny/best.pt"
    assert board == "TensorBoard: tensorboard --logdir runs"


def test_the_size_of_the_run_is_logged_before_the_first_update(tiny) -> None:
    log, _, _ = tiny.printed.err.partition("update 1/4")
    weights = read_checkpoint(tiny.folder / "best.pt")["model"]
    parameters = {tensor.data_ptr(): tensor.numel() for tensor in weights.values()}
    assert f"{sum(parameters.values()):,} parameters" in log
    assert re.search(r"memory: .* MB for weights, gradients and optimizer, \d+ MB more", log)
    assert "120 pairs" in log
    assert "4 updates (0.3 epochs) on cpu in " in log


def test_log_lines_tell_speed_padding_and_time_left_and_are_in_train_log(tiny) -> None:
    line = next(line for line in tiny.printed.err.splitlines() if line.startswith("update 1/4"))
    assert re.search(r"loss [\d.]+, .* tokens/s, [\d.]+% padding, about \d\d:\d\d left", line)
    assert line in (tiny.folder / "train.log").read_text(encoding="utf-8")


def test_tensorboard_holds_every_curve_at_its_steps(tiny) -> None:
    events = events_of(tiny.folder)
    scalars = {tag: [point.step for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    best = {f"result/{tag.replace('/', '_')}" for tag in SCALARS if tag.startswith("dev/")}
    ratios = [tag for tag in scalars if tag.startswith(UPDATE_RATIO_TAG)]
    assert set(scalars) == SCALARS | best | set(ratios)
    assert all(scalars[tag] == [1, 2, 3, 4] for tag in SCALARS if tag.startswith("train/"))
    assert all(scalars[tag] == [2, 4] for tag in SCALARS if tag.startswith("dev/"))
    assert all(len(scalars[tag]) == 2 and scalars[tag][0] > 4 for tag in SCALARS if tag.startswith("dev_by_tokens/"))
    assert f"{UPDATE_RATIO_TAG}/encoder.1" in ratios
    assert all(scalars[tag] == [1, 2, 3, 4] for tag in ratios)
    assert all(scalars[tag] == [4] for tag in best)
    recorded = read_checkpoint(tiny.folder / "best.pt")["best"]
    assert {tag: events.Scalars(f"result/{tag.replace('/', '_')}")[0].value for tag in recorded} == pytest.approx(
        recorded
    )


def test_tensorboard_holds_translations_an_alignment_and_the_settings(tiny) -> None:
    events = events_of(tiny.folder)
    table = events.Tensors("samples/translations/text_summary")[-1].tensor_proto.string_val[0].decode("utf-8")
    assert table.startswith("| source | reference | translation |")
    assert len(table.splitlines()) == 2 + 5
    [signature] = events.Tensors("about/signature/bleu/text_summary")  # once, although dev was evaluated twice
    assert signature.tensor_proto.string_val[0].startswith(b"nrefs:1|case:mixed|")
    [config] = events.Tensors("about/config/text_summary")
    lines = config.tensor_proto.string_val[0].decode("utf-8").splitlines()
    assert json.loads("".join(lines)) == json.loads((tiny.folder / "config.json").read_text(encoding="utf-8"))
    assert all(line.startswith("    ") for line in lines)  # a block of code
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = [[*chart.multiline.tag] for category in layout.category for chart in category.chart]
    found = [{tag for tag in events.Tags()["scalars"] if any(re.match(one, tag) for one in chart)} for chart in charts]
    assert {"train/loss", "dev/loss"} in found, "not train/loss_max: TensorBoard looks for the beginning of a tag"
    assert all(found)
    [first, last] = events.Images("samples/alignment")
    assert (first.step, last.step) == (2, 4)
    assert min(last.width, last.height) > 100
    settings = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hyperparameters = HParamsPluginData.FromString(settings).session_start_info.hparams
    assert hyperparameters["model.encoder"].string_value == "LSTMEncoder"
    assert hyperparameters["1 learning rate"].number_value > 0
    experiment = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    columns = [column.name for column in HParamsPluginData.FromString(experiment).experiment.hparam_infos]
    assert columns[:2] == ["1 learning rate", "2 batch tokens"]  # TensorBoard shows the columns sorted by name
    metrics = [column.name.tag for column in HParamsPluginData.FromString(experiment).experiment.metric_infos]
    assert "result/dev_bleu" in metrics


# The same command again


def test_preprocessed_text_is_used_by_train(run_command, tiny, tmp_path) -> None:
    preprocessed = run_command("prepare", *tiny.overrides[:4], cwd=tmp_path)
    assert preprocessed.code == 0
    assert re.fullmatch(
        r"preprocessed/demo-[0-9a-f]{8}: 120 training pairs, 6 dev pairs\n"
        r"test set test: 5 pairs\n"
        r"lines that change when they are encoded as subwords and decoded: "
        r"train.source 0, train.target 0, dev.target 0, test.test.target 0\n"
        r"120 pairs read, 120 kept\n"
        r"dev: 0 of 6 sources also in the training text, 0 with their target\n"
        r"test\.test: 0 of 5 sources also in the training text, 0 with their target\n",
        preprocessed.out,
    )
    again = run_command("prepare", *tiny.overrides[:4], cwd=tmp_path)
    assert "is up to date" in again.err
    assert again.out == preprocessed.out
    trained = run_command("train", *tiny.overrides, "trainer.max_steps=1", cwd=tmp_path)
    assert trained.code == 0
    assert "is up to date" in trained.err
    assert len(list((tmp_path / "preprocessed").glob("demo-*"))) == 1


def test_a_finished_run_is_reported_as_finished_and_stays_unchanged(run_command, tiny, tmp_path) -> None:
    run = tiny.copied_to(tmp_path)
    before = {path: path.read_bytes() for path in run.folder.rglob("*.pt")}
    again = run_command("train", *run.overrides, cwd=tmp_path)
    assert again.code == 0
    assert "runs/tiny is finished after 4 updates" in again.err
    assert "update 1/" not in again.err
    assert again.out == tiny.printed.out
    assert {path: path.read_bytes() for path in run.folder.rglob("*.pt")} == before
    assert scalar_steps(run.folder, "train/loss") == [1, 2, 3, 4]


def test_with_more_updates_the_same_command_resumes(run_command, tiny, tmp_path) -> None:
    run = tiny.copied_to(tmp_path)
    more = run_command("train", *run.overrides, "trainer.max_steps=7", cwd=tmp_path)
    assert more.code == 0
    assert "3 updates from update 4 (0.2 epochs)" in more.err
    assert "update 5/7" in more.err
    assert "update 4/7" not in more.err
    assert scalar_steps(run.folder, "train/loss") == [1, 2, 3, 4, 5, 6, 7]
    assert scalar_steps(run.folder, "dev/bleu") == [2, 4, 6, 7]
    assert checkpoint_names(run.folder) == ["step_00000004.pt", "step_00000006.pt", "step_00000007.pt"]
    assert read_checkpoint(run.folder / "last.pt")["step"] == 7
    lines = (run.folder / "train.log").read_text(encoding="utf-8")
    assert "update 1/4" in lines
    assert "update 7/7" in lines


def test_after_a_crash_curves_hold_each_step_once(run_command, tiny, tmp_path) -> None:
    """The run had reported updates 3 and 4, but the checkpoint of update 2 is its newest."""
    run = tiny.copied_to(tmp_path)
    (run.folder / "checkpoints" / "step_00000004.pt").unlink()
    assert run_command("train", *run.overrides, cwd=tmp_path).code == 0
    assert scalar_steps(run.folder, "train/loss") == [1, 2, 3, 4]
    assert scalar_steps(run.folder, "dev/bleu") == [2, 4]
    old, new = (read_checkpoint(folder / "last.pt")["model"] for folder in (tiny.folder, run.folder))
    torch.testing.assert_close(new, old, rtol=0, atol=0)


# Other ways to start


@pytest.mark.parametrize("choice", CHOICES)
def test_the_demo_works_with_every_choice_of_every_group(choice: str) -> None:
    """Its recipe sets no key that another choice of a group lacks: an error would name a key the user never wrote."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        check_config(compose("train", [choice]))


def test_a_sweep_makes_a_folder_for_each_job(run_command, tiny, tmp_path) -> None:
    overrides = [text for text in tiny.overrides if not text.startswith("name=")]
    done = run_command("train", "-m", *overrides, "trainer.max_steps=1", "runs=swept", "seed=1,2", cwd=tmp_path)
    assert done.code == 0, done.err
    folders = [path for path in (tmp_path / "swept").iterdir() if path.name != ".sweep"]
    assert len(folders) == 2
    assert all(scalar_steps(folder, "train/loss") == [1] for folder in folders)
    configs = [json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in folders]
    assert sorted(config["seed"] for config in configs) == [1, 2]
    weights = [read_checkpoint(folder / "best.pt")["model"]["source_embedding.weight"] for folder in folders]
    assert not torch.equal(*weights)
    assert {path.name for path in tmp_path.iterdir()} == {"swept", "preprocessed"}


@pytest.fixture
def domain(tiny, tmp_path) -> list[str]:
    """Overrides that name a corpus of the user's own; the dev set is that of the run tiny."""
    lines = [(f"the {noun} is {n} years old.", f"das {noun} ist {n} Jahre alt.") for noun in "abc" for n in range(40)]
    for side, texts in zip(("en", "de"), zip(*lines, strict=True), strict=True):
        (tmp_path / f"train.{side}").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    dev = next((tiny.home / "preprocessed").glob("demo-*")) / "dev"
    return [
        *("data=files", "data.train.source=train.en", "data.train.target=train.de"),
        *(f"data.dev.source={dev}/source.txt", f"data.dev.target={dev}/target.txt", "device=cpu"),
    ]


def test_fine_tuning_needs_the_checkpoint_and_the_data_alone(run_command, tiny, domain, tmp_path) -> None:
    """Model and tokenizers come from the checkpoint, and the dev loss starts at its dev loss and falls.

    Once, the architecture had to be typed again, and the tokenizers were named after preprocessing.
    """
    general = tmp_path / "runs" / "general"
    general.mkdir(parents=True)
    shutil.copy(tiny.folder / "best.pt", general)
    before = read_checkpoint(general / "best.pt")
    command = ["train", "initialize_from=runs/general/best.pt", *domain]
    prepared = run_command("prepare", "initialize_from=runs/general/best.pt", *domain[:-1], cwd=tmp_path)
    assert prepared.code == 0, prepared.err
    limits = ["trainer.max_steps=1", "decoding.max_length_factor=0.5", "schedule.warmup_steps=0"]
    done = run_command(*command, *limits, "name=unchanged", "optimizer.lr=1e-9", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "is up to date" in done.err, "prepare.py made the same folder"
    assert re.search(r"initial weights: update \d+ of runs/general/best\.pt", done.err)
    unchanged = read_checkpoint(tmp_path / "runs" / "unchanged" / "best.pt")
    assert unchanged["best"]["dev/loss"] == pytest.approx(before["best"]["dev/loss"], abs=0.01)
    assert json.loads(unchanged["config"])["model"] == json.loads(before["config"])["model"]
    torch.testing.assert_close(unchanged["model"], before["model"], rtol=0, atol=1e-6)
    limits = [*limits[1:], "trainer.best_metric=dev/loss"]
    done = run_command(*command, *limits, "trainer.max_steps=10", "name=domain", cwd=tmp_path)
    assert done.code == 0, done.err
    assert read_checkpoint(tmp_path / "runs" / "domain" / "best.pt")["best"]["dev/loss"] < unchanged["best"]["dev/loss"]
    shutil.rmtree(general)
    done = run_command(*command, *limits, "trainer.max_steps=12", "name=domain", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "2 updates from update 10" in done.err
    refused = run_command(*command, "name=new", cwd=tmp_path)
    assert refused.code == 2
    assert "initialize_from: checkpoint runs/general/best.pt is not a file" in refused.err
    assert len(list((tmp_path / "preprocessed").iterdir())) == 1


def test_fine_tuning_takes_the_keys_of_the_checkpoint_s_model_also_in_sweeps(
    run_command, tiny, domain, tmp_path
) -> None:
    """The default model, a GNMT, has no such key; and a run is repeated by from_run."""
    limits = ["trainer.max_steps=1", "decoding.max_length_factor=0.5"]
    sizes = ["model.embedding_size=16", "model.encoder.feed_forward_size=16", "tokenizer.vocab_size=420"]
    first = ["model=transformer_tiny", "data.num_train=120", "data.num_dev=6", *sizes, *limits, "device=cpu"]
    done = run_command("train", *first, "name=general", cwd=tmp_path)
    assert done.code == 0, done.err
    command = ["initialize_from=runs/general/best.pt", *domain, *limits, "model.encoder.attention_dropout=0.1,0.2"]
    done = run_command("train", "-m", *command, "name=domain", cwd=tmp_path)
    assert done.code == 0, done.err
    for value in (0.1, 0.2):
        folder = tmp_path / "runs" / f"domain__model.encoder.attention_dropout-{value}"
        model = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]
        assert model["encoder"]["attention_dropout"] == model["decoder"]["attention_dropout"] == value
        assert model["encoder"]["feed_forward_size"] == 16
    done = run_command("train", f"from_run={folder}", "name=again", "seed=2", cwd=tmp_path)
    assert done.code == 0, done.err
    assert f"the config is that of {folder}, except for what this command overrides" in done.err
    assert json.loads((tmp_path / "runs" / "again" / "config.json").read_text(encoding="utf-8"))["model"] == model


@pytest.mark.parametrize("form", ["lists of files", "tsv", "jsonl"])
def test_own_files_in_every_form_train(run_command, tmp_path, form) -> None:
    pairs = [(f"the {noun} number {n}", f"das {noun} Nummer {n}") for noun in ("Haus", "Tor") for n in range(30)]
    sides = {"source": [pair[0] for pair in pairs], "target": [pair[1] for pair in pairs]}
    overrides = ["data=files", "name=mine", *SMALL]
    for split in ("train", "dev"):
        for side, lines in sides.items():
            for part in (0, 1):
                (tmp_path / f"{split}{part}.{side}").write_text("".join(f"{line}\n" for line in lines[part::2]))
        rows = {
            "tsv": "".join(f"{source}\t{target}\n" for source, target in pairs),
            "jsonl": "".join(f'{{"en": "{source}", "de": "{target}"}}\n' for source, target in pairs),
        }
        if form == "lists of files":
            overrides += [f"data.{split}.{side}=[{split}0.{side},{split}1.{side}]" for side in sides]
        else:
            (tmp_path / f"{split}.{form}").write_text(rows[form])
            overrides += [f"data.{split}.pairs={split}.{form}"]
            overrides += [f"data.{split}.columns=[en,de]"] if form == "jsonl" else []
    done = run_command("train", *overrides, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "data: 60 pairs" in done.err


SMALL = (
    "tokenizer.vocab_size=300",
    "model.embedding_size=8",
    "trainer.max_steps=1",
    "decoding.beam_size=1",
    "decoding.max_length_factor=1",
)


def test_a_moved_folder_resumes(run_command, tiny, tmp_path) -> None:
    """Runs and preprocessed data can be moved together: they do not record their location."""
    home = tmp_path / "elsewhere"
    shutil.copytree(tiny.home, home, symlinks=True)
    done = run_command("train", *tiny.overrides, "trainer.max_steps=5", cwd=home)
    assert done.code == 0, done.err
    assert "1 update from update 4" in done.err
