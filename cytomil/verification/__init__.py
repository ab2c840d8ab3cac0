"""Whether everything in a folder is what it says it is: `verify`."""

from cytomil.verification.verify import Verified, verify

__all__ = ["Verified", "verify"]
