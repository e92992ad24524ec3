"""Translate text files of any size, or standard input, line by line.

  python scripts/translate.py checkpoint=runs/demo/best.pt input=a.en output=out.de
  echo "The old man reads a book." | python scripts/translate.py checkpoint=runs/demo/best.pt
  python scripts/translate.py checkpoint=runs/demo/best.pt 'input=[a.en,b.en.gz]' output_folder=out decoding.beam_size=1
  python scripts/translate.py checkpoint=runs/demo/best.pt input=a.en output=out.jsonl format=jsonl decoding.n_best=3
  torchrun --nproc-per-node=2 scripts/translate.py checkpoint=runs/demo/best.pt input=a.en output=out.de

Line N of the output is the translation of line N of the input; a blank line stays blank. The output file appears when
it is complete. Until then the finished lines are kept in <output>.partial, and the same command resumes after an
interruption. With other settings or another input it stops and lists the differences. Without input=, lines that are
typed, or that a program writes to a pipe, are translated as soon as no further line is waiting. Several processes,
started by torchrun, share the work on a file and write the same output as one.

Main keys:
  checkpoint         best.pt of a run, or any other checkpoint of it; several form an ensemble: [a.pt,b.pt]
  input, output      UTF-8 text files, plain, .gz, .bz2 or .xz; - is standard input or output
  output_folder      for several inputs: the folder of the outputs, each with the name of its input
  format             text; tsv and jsonl with scores, n-best (decoding.n_best) and word alignments (alignments=true);
                     pairs for training on the translations
  num_alignments     draws the attention of the first lines, beside the output
  prefixes           a file with the beginning of each translation
  resume             auto: resume from <output>.partial; never: restart from scratch
  target_language    the language to translate into, for a model of data=multilingual
  decoding.*         beam_size, length_penalty_alpha, ...: replace the recorded options
  max_source_tokens  longer lines are translated sentence by sentence; longer sentences are cut between words
  device, precision  auto selects CUDA and bf16 if the hardware has them
"""

import gnmt.signals  # noqa: F401 (first: handles Ctrl-C while the others are imported)

# isort: split
from gnmt.config.cli import run_command
from gnmt.config.schema import TranslateConfig

# oneDNN's default is 1,024. With the many batch shapes of a long file, 512 is as fast and uses less memory.
ONEDNN_CACHE_CAPACITY = 512


def main(cfg: TranslateConfig) -> None:
    from gnmt.config.build import resolve
    from gnmt.decoding.translator import load_translator
    from gnmt.device import set_onednn_cache_capacity
    from gnmt.distributed import current_ranks, report_once
    from gnmt.fileio import path_list
    from gnmt.translation.formats import OutputFormat
    from gnmt.translation.jobs import plan_jobs
    from gnmt.translation.translate_files import MadeFrom, check_alignment_files, draw_alignments, translate_files

    set_onednn_cache_capacity(ONEDNN_CACHE_CAPACITY)
    checkpoints = path_list(cfg.checkpoint)
    jobs = plan_jobs(resolve(cfg)["input"], cfg.output, cfg.output_folder, cfg.prefixes, checkpoints)
    check_alignment_files(jobs, cfg.num_alignments)
    options = {"ensemble": cfg.ensemble, "replace_unknown": cfg.replace_unknown}
    if cfg.target_language is not None:
        options["target_language"] = cfg.target_language
    ranks = current_ranks()
    loaded = load_translator(cfg, ranks.local_device_name(cfg.device))
    loaded.translator.check_target_language()
    if ranks.is_rank_0:
        loaded.log_trained_directions()
    made_from = MadeFrom(checkpoints, options)
    output_format = OutputFormat(cfg.format, cfg.alignments, cfg.word_attention)
    with report_once(ranks):
        if output_format.attention:
            loaded.require_attention("word_attention=true" if cfg.word_attention else "alignments=true")
        if cfg.num_alignments:
            loaded.require_attention(f"num_alignments={cfg.num_alignments}")
        translate_files(loaded.translator, jobs, output_format, made_from=made_from, resume=cfg.resume, ranks=ranks)
        if ranks.is_rank_0:
            draw_alignments(loaded.translator, jobs, cfg.num_alignments)


if __name__ == "__main__":
    run_command(main, "translate")
