"""Run the commands of the documents, shortened to seconds, in the order of the pages, in one folder.

  python tests/by_hand/run_guides.py --folder /tmp/guides
  python tests/by_hand/run_guides.py --folder /tmp/guides --multi30k FOLDER own-data is-it-better

Trainings make three updates of a very small batch, searches use beam 2. The files that the pages name (a.en, b.de,
train.en, ...) are made from the demo corpus, and the runs that they name before training them are copies of two small
runs. Commands that need a download, other machines or an extra that is not installed are listed as left out; those of
recipes for Multi30k need --multi30k. The names of pages, without .md, select some. Exits with 1 if a command failed.
"""

import argparse
import gzip
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import TINY, run_script  # noqa: E402

from gnmt.evaluation.metrics import sentence_chrf  # noqa: E402

# In the order in which a reader meets them. your-own-model.md has a test of its own (test_your_own_model.py).
PAGES = [
    "first-translator",
    "own-data",
    "subwords",
    "choosing-a-size",
    "sweeps",
    "training",
    "models",
    "reading-curves",
    "evaluation",
    "is-it-better",
    "why-is-it-wrong",
    "translation",
    "faster",
    "gpu-box",
    "many-gpus",
    "fine-tuning",
    "refinement",
    "distillation",
    "languages",
    "interchange",
]
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TRAIN = (
    "trainer.max_steps=3",
    "trainer.evaluate_every_steps=3",
    "trainer.save_every_steps=3",
    "trainer.batch_tokens=400",
    "decoding.max_length_factor=0.5",
    "decoding.max_length_offset=2",
    "device=cpu",
)
SHORT = {
    "train": TRAIN,
    "evaluate": ("device=cpu", "decoding.max_length_factor=0.5"),
    "translate": ("device=cpu", "decoding.max_length_factor=0.5"),
    "tune_decoding": ("device=cpu", "decoding.max_length_factor=0.5", "grid.length_penalty_alpha=[0.6,1.0]"),
    "score": ("device=cpu",),
    "benchmark": ("device=cpu", "repetitions=1", "memory=false", "sizes=[tiny]"),
}
SMALL_DEMO = ("data.num_train=120", "data.num_dev=6", "data.num_test=5", "tokenizer.vocab_size=420")
LEFT_OUT = {
    r"wmt16|wmt14": "downloads more than 1 GB",
    r"koen": "needs a corpus that cannot be downloaded",
    r"nvidia": "needs a checkpoint of NVIDIA",
    r"submitit_slurm": "needs Slurm",
    r"on_a_gpu": "needs a GPU: tests/system/test_on_a_gpu.py",
    r"torchrun|srun|#SBATCH": "several processes: tests/system/test_torchrun_train.py, tests/translation",
    r"^comet-score": "needs another program; its file is made here",
    r"pip install|pip wheel|tensorboard|^make ": "installs, or runs until it is stopped",
}


PLUGINS = {
    r"sweeper=search": ("hydra_plugins.hydra_optuna_sweeper", "sweep"),
    r"launcher=joblib": ("hydra_plugins.hydra_joblib_launcher", "sweep"),
    r"launcher=submitit": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    r"runs/(search|seeds)": ("hydra_plugins.hydra_optuna_sweeper", "sweep"),
    r"target_language=ja": ("MeCab", "japanese"),
}
"""Modules that the commands with these words need, and the extras that install them."""


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def commands(page: str) -> list[str]:
    text = "".join(BLOCK.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")))
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def shortened(script: str, overrides: list[str], multi30k: str | None) -> list[str]:
    """Return the overrides with those that make the command short; they come last, so they win."""
    line = " ".join(overrides)
    added = list(SHORT.get(script, ()))
    if script in ("train", "prepare"):
        is_multi30k = "multi30k" in line
        if is_multi30k:
            plus = "++" if "-m" in overrides else ""  # as the page says
            added += [f"{plus}{data}.folder={multi30k}" for data in multi30k_nodes(line)]
            added.append(f"{plus}data.max_pairs={3000 if 'multilingual' in line else 300}")
        elif not re.search(r"data=|experiment=own_text|from_run|preprocessed", line):
            added += SMALL_DEMO
        if "initialize_from" not in line:
            added += ["tokenizer.vocab_size=600" if "word_character" in line else "tokenizer.vocab_size=420"]
            added += ["model=gnmt_tiny"] if re.search(r"experiment=own_text|model=gnmt( |$)", line) else []
        if "data=demo" in line:
            added += SMALL_DEMO
    if "format=pairs" in line:
        added.append("decoding.sampling=true")  # the small models end hardly any sentence in another way
    if "n_best=" in line and "sampling" not in line:
        added.append("decoding.beam_size=4")  # no fewer than the hypotheses
    if "hydra/sweeper=search" in line:
        added.append("hydra.sweeper.n_trials=2")
    if script == "benchmark" and "checkpoint=" in line:
        added = [each for each in added if not each.startswith("sizes=")]
    return [*overrides, *added]


def multi30k_nodes(line: str) -> list[str]:
    """Return the keys of the config nodes that are Multi30k."""
    if "multi30k_multilingual" in line:
        return [f"data.corpora.{name}" for name in ("en_de", "en_fr", "de_fr")]
    return re.findall(r"@(data\.corpora\.\w+)=multi30k", line) or ["data"]


def make_files(folder: Path) -> None:
    """Write the corpora and the runs that the pages name."""
    done = run_script("prepare", "data=demo", "text_folder=text", *SMALL_DEMO, cwd=folder)
    assert done.code == 0, done.err
    for name, of in {
        "train": "train",
        "dev": "dev",
        "test": "test",
        "a": "train",
        "b": "test",  # the test set of the two small runs too
        "b2": "test",
        "c": "dev",
    }.items():
        for language in ("en", "de"):
            [text] = folder.glob(f"text/{of}*.{language}")
            shutil.copy(text, folder / f"{name}.{language}")
    shutil.copy(folder / "a.de", folder / "mono.de")
    for name in "ab":
        shutil.copy(folder / f"{name}.de", folder / f"{name}.ja")  # any text with the name of the page
    first_words = [line.split()[0] for line in (folder / "a.de").read_text("utf-8").splitlines()]
    (folder / "begin.de").write_text("".join(f"{word}\n" for word in first_words), "utf-8")
    for name in ("a.en", "b.en"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    for name in "abc":
        rows = [(folder / f"{name}.{language}").read_text("utf-8").splitlines() for language in ("en", "de")]
        (folder / f"{name}.tsv").write_text("".join(f"{en}\t{de}\n" for en, de in zip(*rows, strict=True)), "utf-8")
    for name, rows in (("train", "a"), ("dev", "b")):
        pairs = [row.split("\t") for row in (folder / f"{rows}.tsv").read_text("utf-8").splitlines()]
        objects: list[object] = [{"en": en, "de": de} for en, de in pairs]
        objects = [{"translation": each} for each in objects] if name == "train" else objects
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in objects), "utf-8")
    (folder / "examples").mkdir(exist_ok=True)
    (folder / "examples" / "demo.en").write_text((folder / "b.en").read_text("utf-8"), "utf-8")
    for name, seed in (("demo", 1), ("b", 2)):
        done = run_script("train", *TINY, f"seed={seed}", f"name={name}", cwd=folder)
        assert done.code == 0, done.err
    for name in ("a", "one", "two", "de_en"):
        shutil.copytree(folder / "runs" / "demo", folder / "runs" / name, symlinks=True)
    done = run_script(
        "translate", "checkpoint=runs/demo/best.pt", "input=b.en", "output=out.jsonl", "format=jsonl", cwd=folder
    )
    assert done.code == 0, done.err
    for name in "ab":
        done = run_script("evaluate", f"checkpoint=runs/{name}/best.pt", cwd=folder)
        assert done.code == 0, done.err
        [text] = (folder / "runs" / name / "translations").glob("test*.txt")
        shutil.copy(text, folder / f"{name}.txt")
    write_scores(folder)


def write_scores(folder: Path) -> None:
    """Write segment scores for a.txt and b.txt: comet.json as comet-score does, and a.scores and b.scores."""
    sources, references = ((folder / f"b.{language}").read_text("utf-8").splitlines() for language in ("en", "de"))
    segments = {}
    for name in "ab":
        translations = (folder / f"{name}.txt").read_text("utf-8").splitlines()
        scores = [chrf / 100 for chrf in sentence_chrf(translations, references)]
        rows = zip(sources, translations, references, scores, strict=True)
        segments[f"{name}.txt"] = [{"src": src, "mt": mt, "ref": ref, "COMET": score} for src, mt, ref, score in rows]
        (folder / f"{name}.scores").write_text("".join(f"{score}\n" for score in scores), "utf-8")
    (folder / "comet.json").write_text(json.dumps(segments), "utf-8")


def run(line: str, folder: Path, multi30k: str | None) -> str:
    """Run one line and return what went wrong, or an empty text."""
    before, _, command = shlex_pipe(line)
    if "/BEST" in command:  # the reader takes the name from the table
        command = command.replace("BEST", next(path.parent.name for path in folder.glob("runs/search/*/best.pt")))
    words = shlex.split(command, comments=True)
    if words[0] != "python":
        done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True)
        return done.stderr if done.returncode else ""
    stdin = (
        subprocess.run(["bash", "-c", before], cwd=folder, capture_output=True, check=True).stdout if before else b""
    )
    script = Path(words[1]).stem
    if "hydra/launcher=" in line:  # its jobs import the script by its own name
        overrides = shortened(script, words[2:], multi30k)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        launched = [sys.executable, str(ROOT / words[1]), *overrides]
        done = subprocess.run(launched, cwd=folder, env=environment, capture_output=True, text=True)
        return done.stderr if done.returncode else ""
    result = run_script(script, *shortened(script, words[2:], multi30k), cwd=folder, stdin=stdin)
    if result.code >= 128:
        sys.exit(result.code)  # a signal, such as Ctrl-C
    if script == "train":
        give_names_of_recipes(folder)
    return "" if result.code == 0 else result.err or f"exit code {result.code}"


def give_names_of_recipes(folder: Path) -> None:
    """Rename runs of recipes as if they had no further overrides, because later commands name them so."""
    for run in (folder / "runs").glob("multi30k_en_de*__data.max_pairs*"):
        named = run.with_name(run.name.partition("__")[0])
        shutil.rmtree(named, ignore_errors=True)
        run.rename(named)


def shlex_pipe(line: str) -> tuple[str, str, str]:
    """Split `a | b` at the pipe before the command of this project."""
    before, pipe, command = line.rpartition("| python")
    return (before, pipe, f"python{command}") if pipe else ("", "", line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--multi30k", help="folder with train.en and so on")
    parser.add_argument("pages", nargs="*", default=PAGES)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not (arguments.folder / "runs" / "b").exists():
        make_files(arguments.folder)
    failed = 0
    for page in arguments.pages:
        for line in commands(page):
            reasons = [reason for pattern, reason in LEFT_OUT.items() if re.search(pattern, line)]
            if "multi30k" in line and arguments.multi30k is None:
                reasons.append("needs --multi30k")
            needed = [extra for pattern, extra in PLUGINS.items() if re.search(pattern, line)]
            reasons += [f"needs the extra {extra}" for module, extra in needed if not is_installed(module)]
            if reasons:
                print(f"left out  {page}: {line}   [{reasons[0]}]", flush=True)
                continue
            start = time.monotonic()
            error = run(line, arguments.folder, arguments.multi30k)
            failed += bool(error)
            print(f"{'FAILED' if error else 'ok':8}  {page}: {line}   [{time.monotonic() - start:.0f} s]", flush=True)
            if error:
                print("    " + "\n    ".join(error.strip().splitlines()[-6:]), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
