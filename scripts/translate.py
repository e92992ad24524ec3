"""Translate a text file, or standard input, line by line.

  python scripts/translate.py checkpoint=runs/demo/best.pt input=a.en output=a.de
  echo "The old man reads a book." | python scripts/translate.py checkpoint=runs/demo/best.pt
  python scripts/translate.py checkpoint=runs/demo/best.pt input=a.en output=a.de decoding.beam_size=1

Line N of the output translates line N of the input; a blank line stays blank. The output file appears when it is
complete. At a terminal, without input=, each line is answered as it is typed.

Main keys:
  checkpoint         best.pt of a run, or any other of its checkpoints
  input, output      UTF-8 text files (the input plain or .gz); - is standard input or output
  decoding.*         beam_size, length_penalty_alpha, …: replaces what the training recorded
  device, precision  auto takes CUDA and bf16 where the hardware has them
"""

from gnmt.checkpoint import load_model
from gnmt.config import TranslateConfig, decoding_node, entry
from gnmt.decoding.translate_file import check_places, translate_file
from gnmt.decoding.translator import Translator
from gnmt.runtime import choose_device


@entry("translate")
def main(cfg: TranslateConfig) -> None:
    check_places(cfg.input, cfg.output)
    loaded = load_model(cfg.checkpoint, choose_device(cfg.device), tuple(cfg.trusted_packages))
    decoding = decoding_node(loaded.config["decoding"], cfg.decoding)
    translator = Translator.of(loaded, cfg.precision, cfg.batch_size, **decoding)
    translate_file(translator, cfg.input, cfg.output)


if __name__ == "__main__":
    main()
