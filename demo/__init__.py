"""The demo: Noukai jobs on a real Airflow and a real Prefect, without an account."""
