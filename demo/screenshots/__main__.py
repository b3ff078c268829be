"""Start an Airflow, a Prefect and a local Noukai, run a DAG and a flow, and take the pictures.

`AIRFLOW_BIN` and `PREFECT_BIN` name the folders with the commands of the two.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo.screenshots.browser import Browser
from devtools.airflow_server import LocalAirflow
from devtools.prefect_server import LocalPrefect
from devtools.processes import wait_until
from noukai_core.emulator import Emulator

ROOT = Path(__file__).resolve().parent.parent.parent
HOME = ROOT / ".build" / "screenshots"
PICTURES = ROOT / "docs" / "images"
KEY = "nk_test_00000000_a-key-that-only-the-local-noukai-takes"
PAGES = "https://app.noukai.dev/{org}/{project}/{flow}/runs/{job_id}"
SECONDS = 240.0

OUTLINE = {"stepId": "outline", "modelUsed": "gpt-5-mini", "tokens": {"total": 3120}, "costUsd": "0.0041"}
CONDENSE = {
    "stepId": "condense",
    "modelUsed": "claude-opus-4",
    "attempt": 3,
    "tokens": {"total": 18944},
    "costUsd": "0.1421",
}
SCRIPT = {
    "translate": {"outcome": "never", "steps": [OUTLINE, {"stepId": "draft"}]},
    "summarise": {
        "after_seconds": 6.0,
        "outcome": "failed",
        "error": "MODEL_OVERLOADED: no capacity",
        "steps": [OUTLINE, CONDENSE],
    },
    "grade": {"after_seconds": 3.0, "result": "A"},
}
REASON = "MODEL_OVERLOADED"


def main() -> int:
    """Take the pictures, and return the exit code."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        print("Chromium and chromedriver are needed (Debian: apt install chromium chromium-driver)")
        return 1
    shutil.rmtree(HOME, ignore_errors=True)
    PICTURES.mkdir(parents=True, exist_ok=True)
    airflow = LocalAirflow(
        Path(os.environ["AIRFLOW_BIN"]), HOME / "airflow", [Path(__file__).parent / "dags"], environment={}
    )
    prefect = LocalPrefect(
        Path(os.environ["PREFECT_BIN"]),
        HOME / "prefect",
        environment={"PYTHONPATH": str(ROOT)},
        web_page=True,
    )
    try:
        with (
            Emulator(SCRIPT) as emulator,
            Browser(Path(chromium), Path(driver)) as browser,
            ThreadPoolExecutor(2) as pool,
        ):
            runs = [
                pool.submit(run_airflow, airflow, emulator),
                pool.submit(run_prefect, prefect, emulator),
            ]
            pages = [page for run in runs for page in run.result()]
            for take in pages:
                take(browser)
    finally:
        airflow.stop()
        prefect.stop()
    shutil.rmtree(HOME, ignore_errors=True)
    return 0


def run_airflow(airflow: LocalAirflow, emulator: Emulator) -> list[Callable[[Browser], None]]:
    """Run the DAG, and return how to take its pictures."""
    airflow.start()
    airflow.add_connection(
        "noukai_default",
        conn_type="noukai",
        host=emulator.base_url,
        password=KEY,
        login="acme",
        schema="books",
        extra=f'{{"run_url_template": "{PAGES}"}}',
    )
    run_id = airflow.trigger("books")
    airflow.wait_for("books", run_id, "translate", "deferred", timeout=SECONDS)
    show_progress(emulator, "translate", 1)
    airflow.wait_for("books", run_id, "summarise", "failed", timeout=SECONDS)
    wait_until(lambda: "progress 40 %" in airflow.logs("books", run_id, "translate"), "the progress", 120)
    tasks = f"{airflow.url}/dags/books/runs/{run_id}/tasks"

    def take(browser: Browser) -> None:
        waiting, failed, xcoms = (PICTURES / f"airflow-{name}.png" for name in ("waiting", "failed", "xcoms"))
        browser.take(f"{tasks}/translate", waiting, "Deferred", "progress 40 %")
        browser.take(f"{tasks}/summarise", failed, "Failed", REASON, keys="w", lines=720)
        browser.take(f"{tasks}/summarise/xcom", xcoms, "job_status", click="Expand all extra JSON")

    return [take]


def run_prefect(prefect: LocalPrefect, emulator: Emulator) -> list[Callable[[Browser], None]]:
    """Run the flow, and return how to take its pictures."""
    prefect.start()
    fields = {
        "api_key": KEY,
        "base_url": emulator.base_url,
        "org": "acme",
        "project": "books",
        "run_url_template": PAGES,
    }
    prefect.save_blocks({"default": ("NoukaiCredentials", fields)})
    prefect.serve(f"{Path(__file__).parent / 'flows.py'}:books")
    run_id = prefect.run("books/local")

    def artifact(key: str) -> str | None:
        return next((found["id"] for found in prefect.artifacts(run_id, key) if found["data"]), None)

    def job_card() -> str | None:
        cards = prefect.artifacts(run_id, "noukai-job-acme-books-summarise")
        return next((card["id"] for card in cards if "**failed**" in str(card["data"])), None)

    wait_until(lambda: artifact("noukai-job-acme-books-translate"), "the job", SECONDS)
    show_progress(emulator, "translate", 1)
    card = wait_until(job_card, "the failed job", SECONDS)
    table = wait_until(lambda: artifact("noukai-jobs-acme-books-grade"), "the table", SECONDS)
    wait_until(lambda: artifact("noukai-progress-acme-books-translate"), "the progress", SECONDS)
    page = f"{prefect.url}/v2"

    def take(browser: Browser) -> None:
        def picture(name: str) -> Path:
            return PICTURES / f"prefect-{name}.png"

        browser.take(f"{page}/runs/flow-run/{run_id}", picture("run"), "Running", "submitted")
        browser.take(f"{page}/artifacts/artifact/{card}", picture("failed"), "Reason", REASON)
        browser.take(f"{page}/artifacts/artifact/{table}", picture("batch"), "Walden", width=1900)
        browser.take(f"{page}/blocks/catalog/noukai-job/create", picture("block"), "Message", height=1000)

    return [take]


def show_progress(emulator: Emulator, slug: str, jobs: int) -> None:
    """Let the running jobs of a flow report a progress."""
    wait_until(
        lambda: len([job for job in emulator.control.jobs() if job["slug"] == slug]) >= jobs, slug, SECONDS
    )
    for job in emulator.control.jobs():
        if job["slug"] == slug:
            emulator.control.progress(job["id"], {"completed": 4, "total": 10})


if __name__ == "__main__":
    sys.exit(main())
