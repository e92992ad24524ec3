"""Open a report in a real browser: no error on its console, sorting and search work, and screenshots to look at.

  python tests/by_hand/open_report.py report.html screenshots

The first argument is a report of scripts/report.py about two or more systems; the second is the folder for the
screenshots: light, dark, and as wide as a phone. Needs Chromium (`apt install chromium`).
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
if (data.scores.length) {
  choose("metric", data.scores[0]);
  const given = (row) => row.systems[1].given[data.scores[0]];
  found.given = given(current[0]) === Math.max(...data.rows.map(given));
}
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
document.title = JSON.stringify(found);
</script>
"""


def browse(page: Path, *options: str) -> str:
    """Load a page, fail if its console shows anything, and return the browser's standard output."""
    done = subprocess.run([*CHROMIUM, *options, page.resolve().as_uri()], capture_output=True, text=True, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console, console
    return done.stdout


def main() -> None:
    report, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    checked = folder / "checked.html"
    checked.write_text(report.read_text(encoding="utf-8").replace("</body>", f"{CHECKS}</body>"), encoding="utf-8")
    (title,) = re.findall("<title>(.*?)</title>", browse(checked, "--dump-dom"))
    found = json.loads(title.replace("&quot;", '"'))
    print(found)
    assert all(found.values()), found
    for name, size, options in (
        ("light", "1200,2600", ()),
        ("dark", "1200,2600", ("--blink-settings=preferredColorScheme=0",)),
        ("phone", "420,3600", ()),
    ):
        browse(report, f"--window-size={size}", f"--screenshot={folder}/{name}.png", *options)
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
