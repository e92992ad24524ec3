"""Translate text files of any size, or standard input, line by line.

  python scripts/translate.py checkpoint=runs/demo/best.pt input=a.en output=a.de
  echo "The old man reads a book." | python scripts/translate.py checkpoint=runs/demo/best.pt
  python scripts/translate.py checkpoint=runs/demo/best.pt 'input=[a.en,b.en.gz]' output_folder=out decoding.beam_size=1
  python scripts/translate.py checkpoint=runs/demo/best.pt input=a.en output=a.jsonl format=jsonl decoding.n_best=3
  torchrun --nproc-per-node=2 scripts/translate.py checkpoint=runs/demo/best.pt input=a.en output=a.de

Line N of the output translates line N of the input; a blank line stays blank. The output file appears when it is
complete. Until then what is done lies in <output>.part, and after any interruption the same command goes on from there;
with other settings or another input it stops and says what differs. At a terminal, without input=, each line is
answered as it is typed. Started by torchrun, several processes share the file; the output is that of one.

Main keys:
  checkpoint         best.pt of a run, or any other of its checkpoints; several are an ensemble: [a.pt,b.pt]
  input, output      UTF-8 text files, plain or .gz; - is standard input or output
  output_folder      where several inputs go, each under its own name
  format             text; tsv and jsonl with scores, n-best (decoding.n_best) and word alignments (alignments=true)
  prefixes           a file that says how each translation begins
  resume             auto goes on with <output>.part; never begins anew
  decoding.*         beam_size, length_penalty_alpha, …: replaces what the training recorded
  max_source_tokens  longer lines are translated in pieces, cut at sentence ends where there are any
  device, precision  auto takes CUDA and bf16 where the hardware has them
"""

import gnmt.signals  # noqa: F401 (before all else: Ctrl-C while the others load)

# isort: split
from gnmt.config.build import resolve
from gnmt.config.cli import entry
from gnmt.config.schema import TranslateConfig
from gnmt.decoding.translator import load_translator
from gnmt.device import set_onednn_cache_capacity
from gnmt.distributed import current_ranks, report_once
from gnmt.translation.formats import OutputFormat
from gnmt.translation.translate_files import MadeFrom, plan_jobs, translate_files

# Of oneDNN, which keeps 1,024 for batches of all sizes that a long file brings: as fast, and memory that grows less.
CPU_KERNELS = 512


@entry("translate")
def main(cfg: TranslateConfig) -> None:
    set_onednn_cache_capacity(CPU_KERNELS)
    values = resolve(cfg)  # plain lists and dictionaries
    checkpoints = [values["checkpoint"]] if isinstance(values["checkpoint"], str) else values["checkpoint"]
    jobs = plan_jobs(values["input"], cfg.output, cfg.output_folder, cfg.prefixes, checkpoints)
    options = {"ensemble": cfg.ensemble, "replace_unknown": cfg.replace_unknown}
    ranks = current_ranks()
    translator, _ = load_translator(
        cfg, ranks.device_name(cfg.device), replace_unknown="copy" if cfg.replace_unknown == "copy" else "none"
    )
    made_from = MadeFrom(checkpoints, options)
    output_format = OutputFormat(cfg.format, cfg.alignments, cfg.word_attention)
    with report_once(ranks):
        translate_files(translator, jobs, output_format, made_from=made_from, resume=cfg.resume, ranks=ranks)


if __name__ == "__main__":
    main()
