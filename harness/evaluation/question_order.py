"""The order in which a gate looks at a checkpoint's questions: another for each checkpoint, the same for each retry.

    order_seed(Path("runs"), model)

A gate's error rates hold where the order is independent of everything that made the checkpoint. One public order is
not: whoever keeps what passed on its first questions adapts to them. So the order comes from the weights' fingerprint
and a salt that nobody who trains needs to know: HMAC(salt, fingerprint). Each runs folder makes its salt once; where
that folder does not last, as in CI, MEDBENCH_ORDER_SALT gives a retry the order of the first try.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from filelock import FileLock

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import replace_file
from medbench.harness.runs.records import ModelRecord

SALT = ".order-salt"
"""File in the runs folder: 16 random bytes as hexadecimal digits. Whoever trains should not read it."""
SALT_DIGITS = 32
VARIABLE = "MEDBENCH_ORDER_SALT"
"""Any text, such as a secret of the CI."""
UNSEEN = ("served", "engine")
"""Kinds of models (see ModelRecord) whose weights may change behind their name."""


def order_seed(runs: Path, model: ModelRecord) -> str:
    """The seed to store in run.json before the first question; fresh where the weights cannot be seen.

    Raises MedbenchError where the salt cannot be read or written.
    """
    if model.kind in UNSEEN:
        return secrets.token_hex(16)
    salt = os.environ.get(VARIABLE) or _salt(runs)
    return hmac.new(salt.encode(), model.fingerprint.encode(), "sha256").hexdigest()


def _salt(runs: Path) -> str:
    path = runs / SALT
    try:
        if not path.exists():
            runs.mkdir(parents=True, exist_ok=True)
            with FileLock(runs / f"{SALT}.lock"):
                if not path.exists():
                    replace_file(path, secrets.token_hex(SALT_DIGITS // 2).encode())
        salt = path.read_text(encoding="ascii").strip()
        bytes.fromhex(salt)
    except ValueError:
        salt = ""
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be used ({error.strerror}): correct --runs") from None
    if len(salt) != SALT_DIGITS:
        raise MedbenchError(f"{path}: not {SALT_DIGITS} hexadecimal digits: restore it, or delete it for new orders")
    return salt
