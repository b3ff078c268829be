"""Prefect: two credentials that differ in nothing but the secret have the same cache key."""

from prefect import flow, task
from prefect.blocks.core import Block
from prefect.cache_policies import INPUTS
from pydantic import SecretStr


class Account(Block):
    """Credentials, as integrations define them."""

    api_key: SecretStr


@task(cache_policy=INPUTS, persist_result=True)
def balance(account: Account) -> str:
    """Return what belongs to the owner of the key."""
    return f"balance of {account.api_key.get_secret_value()}"


@flow
def two_accounts():
    """Ask for two accounts."""
    for key in ("alice", "bob"):
        print(f"{key} sees: {balance(Account(api_key=SecretStr(key)))}")


two_accounts()
