"""Airflow provider for Noukai: hook, operator, sensor, trigger, task decorator and retry policy."""
