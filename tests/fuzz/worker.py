"""The process that uses the inputs: one line of JSON in, one line out."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path

from wsi_stain.errors import WsiStainError
from wsi_stain.files.record import peak_memory_bytes


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may write anywhere
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    from tests.fuzz.kinds import KINDS

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_outcome(KINDS[request["kind"]].use, Path(request["path"]))), file=answers, flush=True)


def _outcome(use, path: Path) -> dict[str, object]:
    try:
        use(path)
        outcome = {"end": "fine"}
    except (WsiStainError, OSError) as err:
        sentence = str(err)
        is_sentence = isinstance(err, OSError) or ("\n" not in sentence and 10 < len(sentence) < 1500)
        outcome = {"end": "refused" if is_sentence else "no sentence", "text": sentence}
    except BaseException as err:
        outcome = {"end": "foreign error", "text": f"{type(err).__name__}: {err}", "trace": traceback.format_exc()}
    return outcome | {"peak": peak_memory_bytes()}


if __name__ == "__main__":
    main()
