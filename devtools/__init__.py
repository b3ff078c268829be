"""A local Airflow and a local Prefect, for the demo, the tests and the benchmarks."""
