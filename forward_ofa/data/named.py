"""Public data sets by name, at their official addresses.

A digest stands here only where the publisher gives one (GroupLens: the .md5 file beside each
release) or where independent public sources agree on it. For the others the digest of the first
download is recorded in the cache, and a later download must match it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RemoteDataset:
    """Where a data set comes from.

    url:    a .zip, which is unpacked, or a file, which is kept as it is.
    digest: "md5:HEX" or "sha256:HEX" of what the url gives; None where none is published.
    """

    title: str
    url: str
    digest: str | None = None


_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data"
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"

_MOVIELENS = {
    "ml-100k": ("MovieLens-100K", "md5:0e33842e24a9c977be4e0107933c0723"),
    "ml-1m": ("MovieLens-1M", "md5:c4d9eecfca2ab87c1945afe126590906"),
    "ml-10m": ("MovieLens-10M", "md5:ce571fd55effeba0271552578f2648bd"),
    "ml-20m": ("MovieLens-20M", "md5:cd245b17a1ae2cc31bb14903e1204af3"),
    "ml-25m": ("MovieLens-25M", "md5:6b51fb2759a8657d3bfcbfc42b592ada"),
    "ml-32m": ("MovieLens-32M", "md5:d472be332d4daa821edc399621853b57"),
    # These two are made anew from time to time, so they have no lasting digest.
    "ml-latest-small": ("MovieLens latest, small", None),
    "ml-latest": ("MovieLens latest", None),
}
_AMAZON_2014 = [
    "Amazon_Instant_Video",
    "Apps_for_Android",
    "Automotive",
    "Baby",
    "Beauty",
    "Books",
    "CDs_and_Vinyl",
    "Cell_Phones_and_Accessories",
    "Clothing_Shoes_and_Jewelry",
    "Digital_Music",
    "Electronics",
    "Grocery_and_Gourmet_Food",
    "Health_and_Personal_Care",
    "Home_and_Kitchen",
    "Kindle_Store",
    "Movies_and_TV",
    "Musical_Instruments",
    "Office_Products",
    "Patio_Lawn_and_Garden",
    "Pet_Supplies",
    "Sports_and_Outdoors",
    "Tools_and_Home_Improvement",
    "Toys_and_Games",
    "Video_Games",
]
_AMAZON_2018 = [
    "AMAZON_FASHION",
    "All_Beauty",
    "Appliances",
    "Arts_Crafts_and_Sewing",
    "Automotive",
    "Books",
    "CDs_and_Vinyl",
    "Cell_Phones_and_Accessories",
    "Clothing_Shoes_and_Jewelry",
    "Digital_Music",
    "Electronics",
    "Gift_Cards",
    "Grocery_and_Gourmet_Food",
    "Home_and_Kitchen",
    "Industrial_and_Scientific",
    "Kindle_Store",
    "Luxury_Beauty",
    "Magazine_Subscriptions",
    "Movies_and_TV",
    "Musical_Instruments",
    "Office_Products",
    "Patio_Lawn_and_Garden",
    "Pet_Supplies",
    "Prime_Pantry",
    "Software",
    "Sports_and_Outdoors",
    "Tools_and_Home_Improvement",
    "Toys_and_Games",
    "Video_Games",
]
_AMAZON_2023 = [
    "All_Beauty",
    "Amazon_Fashion",
    "Appliances",
    "Arts_Crafts_and_Sewing",
    "Automotive",
    "Baby_Products",
    "Beauty_and_Personal_Care",
    "Books",
    "CDs_and_Vinyl",
    "Cell_Phones_and_Accessories",
    "Clothing_Shoes_and_Jewelry",
    "Digital_Music",
    "Electronics",
    "Gift_Cards",
    "Grocery_and_Gourmet_Food",
    "Handmade_Products",
    "Health_and_Household",
    "Health_and_Personal_Care",
    "Home_and_Kitchen",
    "Industrial_and_Scientific",
    "Kindle_Store",
    "Magazine_Subscriptions",
    "Movies_and_TV",
    "Musical_Instruments",
    "Office_Products",
    "Patio_Lawn_and_Garden",
    "Pet_Supplies",
    "Software",
    "Sports_and_Outdoors",
    "Subscription_Boxes",
    "Tools_and_Home_Improvement",
    "Toys_and_Games",
    "Unknown",
    "Video_Games",
]
_KNOWN_DIGESTS = {
    "amazon-2023-5core-Video_Games": (
        "sha256:a2bde5f3b945960d161538c200dd87845e6ee471b46da96410dde61613c6901c"
    ),
}


def _table() -> dict[str, RemoteDataset]:
    found = {
        name: RemoteDataset(title, f"{_GROUPLENS}/{name}.zip", digest)
        for name, (title, digest) in _MOVIELENS.items()
    }
    kinds = (
        ("amazon-2014-", _AMAZON_2014, "Amazon ratings 2014", f"{_SNAP}/ratings_{{}}.csv"),
        (
            "amazon-2018-", _AMAZON_2018, "Amazon ratings 2018",
            f"{_UCSD}/amazon_v2/categoryFilesSmall/{{}}.csv",
        ),
        (
            "amazon-2023-", _AMAZON_2023, "Amazon ratings 2023",
            f"{_UCSD}/amazon_2023/benchmark/0core/rating_only/{{}}.csv.gz",
        ),
        (
            "amazon-2023-5core-", _AMAZON_2023, "Amazon ratings 2023, 5-core",
            f"{_UCSD}/amazon_2023/benchmark/5core/rating_only/{{}}.csv.gz",
        ),
    )  # fmt: skip
    for prefix, categories, title, url in kinds:
        for category in categories:
            name = prefix + category
            text = f"{title}: {category.replace('_', ' ')}"
            found[name] = RemoteDataset(text, url.format(category), _KNOWN_DIGESTS.get(name))
    return found


DATASETS: Mapping[str, RemoteDataset] = _table()


def suggest(datasets: Mapping[str, RemoteDataset]) -> str:
    """The names of data sets for a message, those of many categories as one pattern."""
    plain = [name for name in datasets if not name.startswith("amazon-")]
    patterns = ["amazon-2014-CATEGORY", "amazon-2018-CATEGORY", "amazon-2023-CATEGORY",
                "amazon-2023-5core-CATEGORY"]  # fmt: skip
    shown = [p for p in patterns if any(n.startswith(p[: -len("CATEGORY")]) for n in datasets)]
    return ", ".join(plain + shown)
