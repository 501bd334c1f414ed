"""The families that ship with the package keep the contract, each promise by name."""

import pytest


@pytest.mark.adapter_contract("monkey")
def test_monkey(promise):
    promise.check()


@pytest.mark.adapter_contract("omnilmm")
def test_omnilmm(promise):
    promise.check()


@pytest.mark.adapter_contract("xcomposer")
def test_xcomposer(promise):
    promise.check()
