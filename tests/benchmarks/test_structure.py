"""Counts over a small made-up package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.structure import measure_checkout, measure_package

FILES = {
    "shop/__init__.py": "",
    "shop/base.py": """
        class Item:
            price: dict[str, Any]

        class _Hidden: ...

        def price(item: Item) -> dict[str, Any]:
            return item.price
    """,
    "shop/cart.py": """
        import json
        from shop.base import Item

        class Cart: ...

        def add_item(cart: Cart) -> None:
            from shop import left  # runs later: no arrow

            return None

        def _sum(cart: Cart) -> int:
            return 0
    """,
    "shop/till.py": """
        from typing import TYPE_CHECKING

        from shop.cart import Cart

        if TYPE_CHECKING:
            from shop.left import Left
    """,
    "shop/left.py": "from shop import right\n",
    "shop/right.py": "import shop.left\n\nclass Cart: ...\n",
    "stall/__init__.py": "from .tent import Item\n",
    "stall/tent.py": "class Item: ...\n",
    "stall/inner/__init__.py": "from ..tent import Item\n",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("\n        ", "\n"))
    return tmp_path


@pytest.fixture
def shop(checkout: Path) -> dict[str, Any]:
    return measure_package(checkout, "shop")


def test_arrows_are_imports_that_run_with_the_module(shop: dict[str, Any]) -> None:
    assert shop["modules"] == 6
    assert shop["arrows"] == 4  # cart -> base, till -> cart, left -> right, right -> left


def test_levels_are_the_modules_of_the_longest_chain(shop: dict[str, Any]) -> None:
    assert shop["levels"] == 3  # till, cart, base


def test_modules_that_import_each_other_are_a_circle(shop: dict[str, Any]) -> None:
    assert shop["circles"] == 1


def test_relative_imports_are_arrows(checkout: Path) -> None:
    counts = measure_package(checkout, "stall")
    assert (counts["arrows"], counts["levels"], counts["circles"]) == (2, 2, 0)


def test_one_word_functions(shop: dict[str, Any]) -> None:
    assert (shop["one_word_functions"], shop["top_level_functions"]) == (2, 3)  # price, _sum; not add_item


def test_untyped_dicts_and_sizes(shop: dict[str, Any]) -> None:
    assert shop["untyped_dicts"] == 2
    assert shop["longest_function"] == 4
    assert shop["longest_file"] == 14


def test_class_names_defined_twice_within_and_across_packages(checkout: Path) -> None:
    found = measure_checkout(str(checkout), ["shop", "stall"])
    assert found["class_names_defined_twice"] == ["Cart", "Item"]
    assert (found["circles"], found["one_word_share"]) == (1, 0.667)


def test_parts_are_the_folders_and_files_at_the_top(checkout: Path) -> None:
    counts = measure_package(checkout, "stall")
    assert (counts["parts"], counts["part_levels"], counts["part_arrows"]) == (3, 2, 2)  # stall, inner -> tent
    (checkout / "stall" / "inner" / "deep.py").write_text("from stall.inner import Item\n")
    counts = measure_package(checkout, "stall")
    assert (counts["modules"], counts["parts"], counts["part_arrows"]) == (4, 3, 2)
