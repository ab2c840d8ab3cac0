"""cytomil doctor."""

from __future__ import annotations

from cytomil.app.cli.console import finish, plain_errors, print_table
from cytomil.app.cli.options import AsJson, ParamsFile, Profile
from cytomil.app.settings import load


def doctor(params: ParamsFile = None, profile: Profile = None, as_json: AsJson = False) -> None:
    """Show versions, devices, engines, disk and where data was found, in one screen."""
    with plain_errors():
        settings = load(None, params, profile)
        from cytomil.app.cli.examination import examine

        found = examine(settings)
        print_table("cytomil doctor", ("what", "state", "remark"), found)
    finish({"findings": [dict(zip(("what", "state", "remark"), row, strict=True)) for row in found]}, (), as_json)
