"""`verify`: checks that the files of a folder are unchanged and fit each other."""

from cytomil.verification.verify import Verified, verify

__all__ = ["Verified", "verify"]
