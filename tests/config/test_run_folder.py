"""Names of run folders, and the settings that may change when a run is resumed."""

import json
import re
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from gnmt.config.cli import CONFIG_FOLDER
from gnmt.config.run_folder import (
    GROUPS_IN_NAMES,
    INPUT_FILES,
    LIMITS,
    MAY_CHANGE,
    changed_settings,
    check_sweep_direction,
    run_folder,
    with_recorded_overrides,
)
from gnmt.config.validate import list_keys
from gnmt.errors import InputError


def folder(*overrides: str, name: str | None = None, sweep: bool = False) -> str:
    """Return the folder's name under runs/."""
    path = run_folder(SimpleNamespace(name=name, runs="runs"), overrides, sweep=sweep)
    assert path.parent == Path("runs")
    return path.name


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "demo"),
        (["data=multi30k"], "multi30k"),
        (["experiment=multi30k_en_de"], "multi30k_en_de"),
        (["experiment=multi30k_en_de", "data=files"], "multi30k_en_de__data-files"),
        (["model.encoder.num_layers=3"], "demo__model.encoder.num_layers-3"),
        (["optimizer.lr=1e-3"], "demo__optimizer.lr-0.001"),
        (["model/attention=additive"], "demo__model.attention-additive"),
        (["+optimizer.foreach=true"], "demo__optimizer.foreach-true"),
        (["trainer.clip_norm=null"], "demo__trainer.clip_norm-null"),
        (["seed=3", "loss.smoothing=0"], "demo__loss.smoothing-0__seed-3"),
        (["schedule.total_steps=9"], "demo__schedule.total_steps-9"),  # another recipe; name= lengthens a run
        (["trainer.max_steps=2", "device=cpu", "runs=x", "resume=never", "data.folder=/data/a b"], "demo"),
    ],
)
def test_the_name_lists_the_overrides(overrides: list[str], name: str) -> None:
    assert folder(*overrides) == name


def test_the_order_and_spelling_of_overrides_do_not_matter() -> None:
    assert folder("seed=3", "optimizer.lr=0.001") == folder("optimizer.lr=1e-3", "seed=3")
    assert folder("seed=1", "seed=3") == folder("seed=3")


@pytest.mark.parametrize(
    "override",
    [
        'data.source_language="ü"',
        'data.name="a=b,c"',
        "initialize_from=runs/x/best.pt",
        "tokenizer.user_symbols=[a,b]",
        'data.name="a b"',
        'data.name="../.."',
        "data.name=a__b",
        "~optimizer.amsgrad",
    ],
)
def test_names_hold_only_plain_characters(override: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]+", folder(override))


def test_values_that_look_alike_get_folders_of_their_own() -> None:
    names = ['"a b"', "a_b", '"a=b"', "'a,b'", "[a,b]", '"a__b"', "ab"]
    assert len({folder(f"data.name={name}") for name in names}) == len(names)


def test_long_names_are_shortened_and_still_differ() -> None:
    symbols = ",".join(f"symbol{number}" for number in range(100))
    names = {folder(f"tokenizer.user_symbols=[{symbols},{last}]") for last in ("a", "b")}
    assert len(names) == 2
    assert all(len(name) <= 120 for name in names)


def test_a_given_name_is_the_folder_and_jobs_of_a_sweep_append_their_overrides() -> None:
    assert folder("seed=3", name="mine") == "mine"
    assert folder("seed=3", name="mine", sweep=True) == "mine__seed-3"
    assert folder("seed=4", sweep=True) == "demo__seed-4"


def test_long_numbers_are_rounded_and_names_stay_different() -> None:
    """A search proposes numbers of 17 digits, and a name with four of them was cut."""
    assert folder("optimizer.lr=0.003488", "seed=2", sweep=True) == "demo__optimizer.lr-0.003488__seed-2"
    values = ("0.0034878527126234885", "0.003487852712", "0.003488000000001")
    names = [folder(f"optimizer.lr={value}", "seed=2", sweep=True) for value in values]
    assert all(re.fullmatch(r"demo__optimizer\.lr-0\.003488__seed-2-[0-9a-f]{8}", name) for name in names)
    assert len({*names, folder(f"optimizer.lr={values[0]}", "seed=3", sweep=True)}) == 4


def test_jobs_of_a_sweep_over_limits_or_data_do_not_share_a_folder() -> None:
    """Each job resumed the run of another."""
    assert folder("trainer.max_steps=2", sweep=True) != folder("trainer.max_steps=4", sweep=True)
    assert folder("data=demo", name="x", sweep=True) != folder("data=multi30k", name="x", sweep=True)
    assert folder("data.folder=/a", "seed=1", sweep=True) == folder("data.folder=/b", "seed=1", sweep=True)


@pytest.mark.parametrize("name", ["a b", "ü", "a/b", "../x", "a=b", "", ".", ".."])
def test_a_name_that_is_no_plain_folder_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"^name: found "):
        folder(name=name)


def test_settings_that_may_change_are_no_changes() -> None:
    def corpora_in(folder: str) -> dict[str, object]:
        return {
            "news-commentary": {"text": {"source": f"{folder}n.en"}}
        }  # with its hyphen, a moved file was reported as a change

    old = {
        "seed": 1,
        "device": "cpu",
        "data": {"folder": "a", "train": {"source": "a.en"}, "corpora": corpora_in(""), "test": {"x": {"source": "b"}}},
        "trainer": {"max_steps": 5, "batch_tokens": 100},
        "optimizer": {"betas": [0.9, 0.98], "gone": 1},
        "model": {"encoder": {"num_layers": 2}},
    }
    new = {
        "seed": 1,
        "device": "cuda",
        "data": {"folder": "b", "train": {"source": "moved/a.en"}, "corpora": corpora_in("moved/"), "test": {}},
        "trainer": {"max_steps": 50, "batch_tokens": 100},
        "optimizer": {"betas": [0.9, 0.999], "new": None},
        "model": {"encoder": {"num_layers": 3}},
    }
    assert changed_settings(old, new) == [
        "model.encoder.num_layers: 2 → 3",
        "optimizer.betas: [0.9, 0.98] → [0.9, 0.999]",
        "optimizer.gone: 1 → absent",
        "optimizer.new: absent → null",
    ]
    assert changed_settings(old, {**old, "optimizer": {"betas": (0.9, 0.98), "gone": 1}}) == []


def test_a_component_in_place_of_null_is_one_change() -> None:
    """Once, each of its keys was listed, and the changes that followed them were cut off."""
    clipping = {"_target_": "gnmt.model.clipping.Clipping", "start": 8.0, "end": 1.0}
    one, two = {"model": {"clipping": None, "z": 1}}, {"model": {"clipping": clipping, "z": 2}}
    change = "a component (gnmt.model.clipping.Clipping)"
    assert changed_settings(one, two) == [f"model.clipping: null → {change}", "model.z: 1 → 2"]
    assert changed_settings(two, one) == [f"model.clipping: {change} → null", "model.z: 2 → 1"]


def test_long_values_are_compared_whole() -> None:
    assert len(changed_settings({"a": "x" * 500 + "1"}, {"a": "x" * 500 + "2"})) == 1


def test_every_key_of_the_lists_is_a_key_of_some_config() -> None:
    """A key that was renamed would silently forbid to resume, or name runs after their folders."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        groups = [path.relative_to(CONFIG_FOLDER).with_suffix("") for path in CONFIG_FOLDER.glob("data/*.yaml")]
        keys = {key for group in groups for key in list_keys(compose("train", [f"{group.parent}={group.name}"]))}
        chosen = compose("train", return_hydra_config=True).hydra.runtime.choices
    assert MAY_CHANGE - keys == set()
    assert LIMITS <= MAY_CHANGE
    assert {key for key in keys if INPUT_FILES.fullmatch(key)} == {
        f"{text}.{side}"
        for text in (
            "data.train",
            "data.dev",
            *(f"data.corpora.{name}.text" for name in ("first", "second", "parallel", "translated")),
        )
        for side in ("source", "target", "pairs")
    }
    assert any(key.startswith("data.test.") for key in keys)
    assert set(GROUPS_IN_NAMES) <= set(chosen)


@pytest.mark.parametrize(
    ("metric", "sweeper", "advice"),
    [
        ("dev/bleu", {}, None),
        ("dev/bleu", {"direction": "maximize"}, None),
        ("dev/chrf", {"direction": "minimize"}, "hydra.sweeper.direction=maximize"),
        ("dev/loss", {"direction": "minimize"}, None),
        ("dev/loss", {"direction": "maximize"}, "hydra.sweeper.direction=minimize"),
    ],
)
def test_a_sweep_in_the_wrong_direction_is_refused(
    metric: str, sweeper: dict[str, str], advice: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna minimizes by default, so it would look for the settings with the lowest BLEU."""
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create({"sweeper": sweeper, "mode": RunMode.MULTIRUN}))
    if advice is None:
        check_sweep_direction(metric)
    else:
        with pytest.raises(InputError, match=f"trainer.best_metric={metric}: use {advice}"):
            check_sweep_direction(metric)


def repeated(record: list[str], *given: str, folder: Path) -> list[str]:
    """Return the overrides of a run with from_run of a folder with this record, without from_run."""
    (folder / "overrides.json").write_text(json.dumps(record), encoding="utf-8")
    return with_recorded_overrides([f"from_run={folder}", *given])[: -1 - len(given)] + list(given)


@pytest.mark.parametrize(
    ("record", "given", "overrides"),
    [
        (["seed=1", "optimizer.lr=1"], ["optimizer.lr=2"], ["seed=1", "optimizer.lr=2"]),
        (["name=x", "resume=never", "trusted_packages=[a]", "seed=1"], ["name=y"], ["seed=1", "name=y"]),
        (["+optimizer.foreach=true"], ["optimizer.foreach=false"], None),
        (["++optimizer.foreach=true"], ["optimizer.foreach=false"], None),
        (["+optimizer.foreach=true"], ["+optimizer.foreach=false"], ["+optimizer.foreach=false"]),
        (["schedule.total_steps=9"], ["~schedule.total_steps"], ["++schedule.total_steps=9", "~schedule.total_steps"]),
        (["+optimizer.foreach=true"], ["~optimizer.foreach"], ["++optimizer.foreach=true", "~optimizer.foreach"]),
        (["~schedule.total_steps"], ["~schedule.total_steps"], ["~schedule.total_steps"]),
        (["model/attention=dot"], ["~model/attention"], ["~model/attention"]),
    ],
)
def test_overrides_of_the_command_replace_and_remove_recorded_ones(record, given, overrides, tmp_path) -> None:
    """`++key=1` was dropped, so that `key=2` changed a missing key; so was the key that `~key` was to remove."""
    assert repeated(record, *given, folder=tmp_path) == (overrides or [*record, *given])


@pytest.mark.parametrize("foreign", ["+hydra.callbacks.a._target_=shutil.copy", "hydra/launcher=joblib", "x=[", "-m"])
def test_a_record_that_could_run_code_is_refused(foreign: str, tmp_path: Path) -> None:
    """Hydra calls any function that its own config names, so from_run of a foreign folder ran code."""
    with pytest.raises(InputError, match=r"overrides\.json holds .*, which train\.py never records"):
        repeated(["seed=1", foreign], folder=tmp_path)


def test_the_default_direction_of_optuna_is_that_of_a_loss_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a member of an enumeration, so it was refused for dev/loss too, as "Direction.minimize"."""
    direction = Enum("Direction", ["minimize", "maximize"])
    sweeper = OmegaConf.create({"sweeper": {"direction": direction["minimize"]}, "mode": RunMode.MULTIRUN})
    monkeypatch.setattr(HydraConfig, "get", lambda: sweeper)
    with pytest.raises(InputError, match=r"^hydra\.sweeper\.direction is minimize, but"):
        check_sweep_direction("dev/bleu")
    check_sweep_direction("dev/loss")


def test_a_sweeper_that_searches_is_refused_without_m(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was ignored, and one run with the default settings was trained."""
    choices = {"hydra/sweeper": "search"}
    hydra = {"sweeper": {"direction": "maximize"}, "mode": RunMode.RUN, "runtime": {"choices": choices}}
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(hydra))
    with pytest.raises(InputError, match=r"^hydra/sweeper is search, which searches only with -m: give -m"):
        check_sweep_direction("dev/bleu")
