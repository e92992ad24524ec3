"""Open a report in a real browser: no error on its console, sorting and search work, and screenshots to look at.

  python tests/by_hand/open_report.py report.html screenshots

The first argument is a report of scripts/report.py about two or more systems; the second is the folder for the
screenshots of its top and of its sentences: light, dark, and as wide as a phone. Needs Chromium (`apt install
chromium`).
"""

import json
import re
import subprocess
import sys
from pathlib import Path

CHROMIUM = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
CHROMIUM += ["--virtual-time-budget=10000", "--enable-logging=stderr"]

# Runs after the page's own script, and writes what it found into the title.
CHECKS = """
<script>
const found = {};
const articles = () => [...document.querySelectorAll("article")];
const lines = () => articles().map((one) => Number(one.querySelector("header").textContent.split(" ")[1]));
const choose = (id, value) => {
  byId(id).value = value;
  byId("controls").dispatchEvent(new Event("input", {bubbles: true}));
};
choose("order", "line");
found.inOrder = JSON.stringify(lines()) === JSON.stringify([...lines()].sort((a, b) => a - b));
const first = () => current[0].systems[Number(byId("system").value)].chrf;
choose("order", "lowest"); const low = first(); choose("order", "highest");
found.highest = first() >= low;
choose("system", "1"); found.bySecond = first() === Math.max(...data.rows.map((row) => row.systems[1].chrf));
metrics.forEach(([name, value], index) => {
  choose("metric", String(index));
  const values = data.rows.map((row) => value(row.systems[1])).filter((one) => one !== undefined);
  found[name] = !values.length || value(current[0].systems[1]) === Math.max(...values);
});
const word = data.rows[0].source.split(" ")[0];
choose("search", word);
const holds = (row) => JSON.stringify(row).toLowerCase().includes(word.toLowerCase());
found.search = articles().length > 0 && current.every(holds);
choose("search", "no sentence holds this text");
found.nothing = articles().length === 0;
choose("search", "");
const before = articles().length;
byId("more").click();
found.more = articles().length > before || before === data.rows.length;
const color = (name, property) => getComputedStyle(document.querySelector(name))[property];
found.figureText = color("figure svg text", "fill") === color("body", "color");
document.querySelectorAll("details").forEach((one) => { one.open = true; one.dispatchEvent(new Event("toggle")); });
found.fits = document.documentElement.scrollWidth <= window.innerWidth;
document.title = JSON.stringify(found);
</script>
"""


# Shows the sentences alone, with the attention of the first ones, where it is known.
SENTENCES = """
<style>section:not(:last-of-type) { display: none; }</style>
<script>[...document.querySelectorAll("article details")].slice(0, 2).forEach((one) => { one.open = true; });</script>
"""
DARK = "--blink-settings=preferredColorScheme=0"
PHONE = "--window-size=420,3600"


def browse(page: Path, *options: str) -> str:
    """Load a page, fail if its console shows anything, and return the browser's standard output."""
    done = subprocess.run([*CHROMIUM, *options, page.resolve().as_uri()], capture_output=True, text=True, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console, console
    return done.stdout


def main() -> None:
    report, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    html = report.read_text(encoding="utf-8")
    checked, sentences = folder / "checked.html", folder / "sentences.html"
    checked.write_text(html.replace("</body>", f"{CHECKS}</body>"), encoding="utf-8")
    sentences.write_text(html.replace("</body>", f"{SENTENCES}</body>"), encoding="utf-8")
    for options in ((), (DARK,), (PHONE,)):
        (title,) = re.findall("<title>(.*?)</title>", browse(checked, "--dump-dom", *options))
        found = json.loads(title.replace("&quot;", '"'))
        print(found)
        assert all(found.values()), found
    for name, page in (("", report), ("sentences_", sentences)):
        for kind, options in (
            ("light", ("--window-size=1200,2600",)),
            ("dark", ("--window-size=1200,2600", DARK)),
            ("phone", (PHONE,)),
        ):
            browse(page, f"--screenshot={folder}/{name}{kind}.png", *options)
            print(folder / f"{name}{kind}.png")


if __name__ == "__main__":
    main()
