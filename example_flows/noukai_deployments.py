"""Deploy the two flows of the package that run jobs. Their parameters are a form on Prefect's web page."""

from __future__ import annotations

from prefect import serve

from noukai_prefect.flows import noukai_job, noukai_jobs

if __name__ == "__main__":
    serve(noukai_job.to_deployment("form"), noukai_jobs.to_deployment("form"))
