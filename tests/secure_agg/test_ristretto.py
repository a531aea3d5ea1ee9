"""ristretto255 and its OPRF: the vectors of RFC 9496 and RFC 9497, and what is no element."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from secure_agg import ristretto
from secure_agg.errors import InvalidElement, UnusableLibrary
from secure_agg.ristretto import (
    CHUNK,
    CONTEXT,
    ORDER,
    SIZE,
    blind,
    checked,
    derived_key,
    encoded,
    finalize,
    hashed,
    mapped,
    multiplied,
)

# RFC 9496, A.1: the generator times 1 to 15.
MULTIPLES = [
    "e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76",
    "6a493210f7499cd17fecb510ae0cea23a110e8d5b901f8acadd3095c73a3b919",
    "94741f5d5d52755ece4f23f044ee27d5d1ea1e2bd196b462166b16152a9d0259",
    "da80862773358b466ffadfe0b3293ab3d9fd53c5ea6c955358f568322daf6a57",
    "e882b131016b52c1d3337080187cf768423efccbb517bb495ab812c4160ff44e",
    "f64746d3c92b13050ed8d80236a7f0007c3b3f962f5ba793d19a601ebb1df403",
    "44f53520926ec81fbd5a387845beb7df85a96a24ece18738bdcfa6a7822a176d",
    "903293d8f2287ebe10e2374dc1a53e0bc887e592699f02d077d5263cdd55601c",
    "02622ace8f7303a31cafc63f8fc48fdc16e1c8c8d234b2f0d6685282a9076031",
    "20706fd788b2720a1ed2a5dad4952b01f413bcf0e7564de8cdc816689e2db95f",
    "bce83f8ba5dd2fa572864c24ba1810f9522bc6004afe95877ac73241cafdab42",
    "e4549ee16b9aa03099ca208c67adafcafa4c3f3e4e5303de6026e3ca8ff84460",
    "aa52e000df2e16f55fb1032fc33bc42742dad6bd5a8fc0be0167436c5948501f",
    "46376b80f409b29dc2b5f6f0c52591990896e5716f41477cd30085ab7f10301e",
    "e0c418f7c8d9c4cdd7395b93ea124f3ad99021bb681dfc3302a9d99a2e53e64e",
]
# RFC 9496, A.2: not canonical, negative, x^2 no square, xy negative, s = -1; and the neutral element.
NO_ELEMENTS = [
    "00ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "f3ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "01ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ed57ffd8c914fb201471d1c3d245ce3c746fcbe63a3679d51b6a516ebebe0e20",
    "c34c4e1826e5d403b78e246e88aa051c36ccf0aafebffe137d148a2bf9104562",
    "c940e5a4404157cfb1628b108db051a8d439e1a421394ec4ebccb9ec92a8ac78",
    "47cfc5497c53dc8e61c91d17fd626ffb1c49e2bca94eed052281b510b1117a24",
    "f1c6165d33367351b0da8f6e4511010c68174a03b6581212c71c0e1d026c3c72",
    "87260f7a2f12495118360f02c26a470f450dadf34a413d21042b43b9d93e1309",
    "26948d35ca62e643e26a83177332e6b6afeb9d08e4268b650f1f5bbd8d81d371",
    "4eac077a713c57b4f4397629a4145982c661f48044dd3f96427d40b147d9742f",
    "de6a7b00deadc788eb6b6c8d20c0ae96c2f2019078fa604fee5b87d6e989ad7b",
    "bcab477be20861e01e4a0e295284146a510150d9817763caf1a6f4b422d67042",
    "2a292df7e32cababbd9de088d1d1abec9fc0440f637ed2fba145094dc14bea08",
    "f4a9e534fc0d216c44b218fa0c42d99635a0127ee2e53c712f70609649fdff22",
    "8268436f8c4126196cf64b3c7ddbda90746a378625f9813dd9b8457077256731",
    "2810e5cbc2cc4d4eece54f61c6f69758e289aa7ab440b3cbeaa21995c2f4232b",
    "3eb858e78f5a7254d8c9731174a94f76755fd3941c0ac93735c07ba14579630e",
    "a45fdc55c76448c049a1ab33f17023edfb2be3581e9c7aade8a6125215e04220",
    "d483fe813c6ba647ebbfd3ec41adca1c6130c2beeee9d9bf065c8d151c5f396e",
    "8a2e1d30050198c65a54483123960ccc38aef6848e1ec8f5f780e8523769ba32",
    "32888462f8b486c68ad7dd9610be5192bbeaf3b443951ac1a8118419d9fa097b",
    "227142501b9d4355ccba290404bde41575b037693cef1f438c47f8fbf35d1165",
    "5c37cc491da847cfeb9281d407efc41e15144c876e0170b499a96a22ed31e01e",
    "445425117cb8c90edcbc7c1cc0e74f747f2c1efa5630a967c64f287792a48a4b",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
]
# RFC 9496, A.3: one of its digests, and the element it is mapped to.
DIGEST = (
    "165d697a1ef3d5cf3c38565beefcf88c0f282b8e7dbd28544c483432f1cec767"
    "5debea8ebb4e5fe7d6f6e5db15f15587ac4d4d4a1de7191e0c1ca6664abcc413"
)
MAPPED = "ae81e7dedf20a497e10c304a765c1767a42d6e06029758d2d7e8ef7cc4c41179"
# RFC 9497, A.1.1: mode OPRF.
BLIND = bytes.fromhex("64d37aed22a27f5191de1c1d69fadb899d8862b58eb4220029e036ec4c1f6706")
KEY = "5ebcea5ee37023ccb9fc2d2019f9d7737be85591ae8652ffa9ef0f4d37063b0e"
ANSWERS = [
    (
        "00",
        "609a0ae68c15a3cf6903766461307e5c8bb2f95e7e6550e1ffa2dc99e412803c",
        "7ec6578ae5120958eb2db1745758ff379e77cb64fe77b0b2d8cc917ea0869c7e",
        "527759c3d9366f277d8c6020418d96bb393ba2afb20ff90df23fb7708264e2f3"
        "ab9135e3bd69955851de4b1f9fe8a0973396719b7912ba9ee8aa7d0b5e24bcf6",
    ),
    (
        "5a" * 17,
        "da27ef466870f5f15296299850aa088629945a17d1f5b7f5ff043f76b3c06418",
        "b4cbf5a4f1eeda5a63ce7b77c7d23f461db3fcab0dd28e4e17cecb5c90d02c25",
        "f4a74c9c592497375e796aa837e907b1a045d34306a749db9f34221f7e750cb4"
        "f2a6413a6bf6fa5e19ba6348eb673934a722a7ede2e7621306d18951e7cf2c73",
    ),
]


def element(text: str):
    return encoded(bytes.fromhex(text))


def scalar(number: int) -> bytes:
    return number.to_bytes(SIZE, "little")


@pytest.mark.parametrize(("times", "multiple"), list(enumerate(MULTIPLES, start=1)))
def test_multiples_of_the_generator_are_those_of_rfc_9496(times: int, multiple: str) -> None:
    product = multiplied(scalar(times), element(MULTIPLES[0]))
    assert product.tobytes().hex() == multiple


@pytest.mark.parametrize("bad", NO_ELEMENTS)
def test_what_rfc_9496_calls_invalid_is_refused_and_its_row_is_named(bad: str) -> None:
    rows = np.concatenate([element(MULTIPLES[0]), element(MULTIPLES[4]), element(bad)])
    for use in (checked, lambda e: multiplied(scalar(7), e)):
        with pytest.raises(InvalidElement) as refusal:
            use(rows)
        assert refusal.value.row == 2


def test_a_second_encoding_of_an_element_is_refused() -> None:
    """libsodium 1.0.18, which rbcl 1.1.2 brings, overlooks the last bit."""
    rows = np.concatenate([element(MULTIPLES[0]), element(MULTIPLES[0])])
    rows[1, -1] |= 128
    for use in (checked, lambda e: multiplied(scalar(7), e)):
        with pytest.raises(InvalidElement) as refusal:
            use(rows)
        assert refusal.value.row == 1


def test_a_digest_is_mapped_as_in_rfc_9496() -> None:
    digest = np.frombuffer(bytes.fromhex(DIGEST), dtype=np.uint8).reshape(1, -1)
    assert mapped(digest).tobytes().hex() == MAPPED


def test_the_key_is_derived_as_in_rfc_9497() -> None:
    assert derived_key(b"\xa3" * 32, b"test key").hex() == KEY


@pytest.mark.parametrize(("text", "blinded", "evaluated", "output"), ANSWERS)
def test_the_oprf_gives_the_vectors_of_rfc_9497(
    text: str, blinded: str, evaluated: str, output: str
) -> None:
    texts = [bytes.fromhex(text)]
    first = blind(texts, BLIND)
    second = multiplied(bytes.fromhex(KEY), first)
    assert (first.tobytes().hex(), second.tobytes().hex()) == (blinded, evaluated)
    assert finalize(texts, BLIND, second)[0].hex() == output
    assert CONTEXT == b"OPRFV1-\x00-ristretto255-SHA512"


def test_rows_stay_in_order_over_chunks_and_threads() -> None:
    texts = [str(row).encode() for row in range(CHUNK + 3)]
    all_rows = hashed(texts, workers=3)
    for row in (0, CHUNK - 1, CHUNK, CHUNK + 2):
        assert all_rows[row].tobytes() == hashed(texts[row : row + 1]).tobytes()
    assert len(np.unique(all_rows, axis=0)) == len(texts)


def test_multiplications_commute_and_an_inverse_takes_one_back() -> None:
    a, b = (1 + secrets.randbelow(ORDER - 1) for _ in range(2))
    start = hashed([b"one", b"two", b"three"])
    there = multiplied(scalar(a), multiplied(scalar(b), start))
    assert (there == multiplied(scalar(b), multiplied(scalar(a), start))).all()
    back = multiplied(scalar(pow(a * b, -1, ORDER)), there)
    assert (back == start).all()


def test_an_empty_array_stays_empty() -> None:
    assert hashed([]).shape == multiplied(scalar(2), hashed([])).shape == (0, SIZE)


def test_a_missing_library_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rbcl", None)
    ristretto._libsodium.cache_clear()
    try:
        with pytest.raises(UnusableLibrary, match="set TMPDIR"):
            hashed([b"a"])
    finally:
        ristretto._libsodium.cache_clear()


def test_the_library_leaves_no_file_behind(tmp_path: Path) -> None:
    command = "from secure_agg import ristretto; ristretto.hashed([b'a'])"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", command], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
