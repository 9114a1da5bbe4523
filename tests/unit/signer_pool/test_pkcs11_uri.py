"""PKCS #11 URIs: the RFC's own examples, a round trip of everything, and what is refused."""

import re
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer_pool.pkcs11_uri import ObjectType, Pkcs11Uri, Pkcs11UriError

TEXT = st.none() | st.text(st.characters(codec="utf-8"), max_size=12)
URIS = st.builds(
    Pkcs11Uri,
    token=TEXT, manufacturer=TEXT, serial=TEXT, model=TEXT,
    library_manufacturer=TEXT, library_description=TEXT,
    library_version=st.none() | st.from_regex(r"\A[0-9]{1,3}(\.[0-9]{1,3})?\Z"),
    slot_id=st.none() | st.integers(0, 2**64 - 1),
    slot_manufacturer=TEXT, slot_description=TEXT, object=TEXT,
    id=st.none() | st.binary(max_size=20),
    type=st.none() | st.sampled_from(get_args(ObjectType)),
    pin_source=TEXT, module_name=TEXT, module_path=TEXT,
)  # fmt: skip


@given(URIS)
def test_what_is_written_is_read_again(uri: Pkcs11Uri) -> None:
    text = str(uri)
    assert text.isascii()
    assert re.fullmatch(r"\S+", text)
    assert Pkcs11Uri.parse(text) == uri
    assert str(Pkcs11Uri.parse(text)) == text


@given(st.text(st.sampled_from("pkcs11:token=serial;?&%20x-id\u1234\n"), max_size=40))
def test_any_text_is_a_uri_or_one_line_of_refusal(text: str) -> None:
    try:
        uri = Pkcs11Uri.parse("pkcs11:" + text)
    except Pkcs11UriError as error:
        said = str(error)
    else:
        said = str(uri)
        assert Pkcs11Uri.parse(said) == uri
    assert "\n" not in said


RFC_EXAMPLES = [  # RFC 7512 §3, all but the one with a PIN
    ("pkcs11:", Pkcs11Uri()),
    ("pkcs11:object=my-pubkey;type=public", Pkcs11Uri(object="my-pubkey", type="public")),
    (
        "pkcs11:object=my-key;type=private?pin-source=file:/etc/token",
        Pkcs11Uri(object="my-key", type="private", pin_source="file:/etc/token"),
    ),
    (
        "pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;object=my-certificate;type=cert;id=%69%95%3E%5C%F4%BD%EC%91;serial=?pin-source=file:/etc/token_pin",
        Pkcs11Uri(
            token="The Software PKCS#11 Softtoken", manufacturer="Snake Oil, Inc.", model="1.0", serial="",
            object="my-certificate", type="cert", id=bytes.fromhex("69953E5CF4BDEC91"),
            pin_source="file:/etc/token_pin",
        ),
    ),
    (
        "pkcs11:object=my-sign-key;type=private?module-name=mypkcs11",
        Pkcs11Uri(object="my-sign-key", type="private", module_name="mypkcs11"),
    ),
    (
        "pkcs11:object=my-sign-key;type=private?module-path=/mnt/libmypkcs11.so.1",
        Pkcs11Uri(object="my-sign-key", type="private", module_path="/mnt/libmypkcs11.so.1"),
    ),
    ("pkcs11:slot-description=Sun%20Metaslot", Pkcs11Uri(slot_description="Sun Metaslot")),
    (
        "pkcs11:library-manufacturer=Snake%20Oil,%20Inc.;library-description=Soft%20Token%20Library;library-version=1.23",
        Pkcs11Uri(
            library_manufacturer="Snake Oil, Inc.", library_description="Soft Token Library", library_version="1.23"
        ),
    ),
    (
        "pkcs11:token=My%20token%25%20created%20by%20Joe;library-version=3;id=%01%02%03%Ba%dd%Ca%fe%04%05%06",
        Pkcs11Uri(
            token="My token% created by Joe", library_version="3", id=bytes.fromhex("010203BADDCAFE040506")
        ),
    ),
    (
        "pkcs11:token=A%20name%20with%20a%20substring%20%25%3B;object=my-certificate;type=cert",
        Pkcs11Uri(token="A name with a substring %;", object="my-certificate", type="cert"),
    ),
    (
        "pkcs11:token=Name%20with%20a%20small%20A%20with%20acute:%20%C3%A1;object=my-certificate;type=cert",
        Pkcs11Uri(token="Name with a small A with acute: á", object="my-certificate", type="cert"),
    ),
    (
        "pkcs11:token=my-token;object=my-certificate;type=cert;vendor-aaa=value-a?pin-source=file:/etc/token_pin&vendor-bbb=value-b",
        Pkcs11Uri(token="my-token", object="my-certificate", type="cert", pin_source="file:/etc/token_pin"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "uri"), RFC_EXAMPLES)
def test_examples_of_the_rfc(text: str, uri: Pkcs11Uri) -> None:
    assert Pkcs11Uri.parse(text) == uri
    assert Pkcs11Uri.parse(str(uri)) == uri


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("PKCS11:slot-id=007", "pkcs11:slot-id=7"),
        ("pkcs11:serial=1;token=a", "pkcs11:token=a;serial=1"),
        ("pkcs11:token=%61%3a%2f%3f%3b%3d;x-one=1;x-one=2", "pkcs11:token=a:%2F%3F%3B%3D"),
        ("pkcs11:token=a=b&c", "pkcs11:token=a%3Db&c"),
        ("pkcs11:id=a%00", "pkcs11:id=%61%00"),
        ("pkcs11:token=%e0%ba%84%e0%ba%b5", "pkcs11:token=%E0%BA%84%E0%BA%B5"),
        ("pkcs11:?", "pkcs11:"),
        (
            "pkcs11:token=a?module-path=/o%70t/a?b%26c&pin-source=|/x",
            "pkcs11:token=a?pin-source=|/x&module-path=/opt/a?b%26c",
        ),
    ],
)
def test_canonical_form(text: str, canonical: str) -> None:
    assert str(Pkcs11Uri.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("token=a", ["pkcs11:token="]),
        ("", ["pkcs11:token="]),
        ("pkcs11:token=a;token=b", ["token", "twice", "keep one"]),
        ("pkcs11:?module-path=/a&module-path=/b", ["module-path", "twice"]),
        ("pkcs11:tokne=a", ["attribute tokne", "correct its name"]),
        ("pkcs11:Token=a", ["attribute Token", "unknown"]),
        ("pkcs11:token=a;module-path=/a", ["module-path", "move it"]),
        ("pkcs11:?token=a", ["attribute token", "move it"]),
        ("pkcs11:token", ["name=value"]),
        ("pkcs11:token=a;", ["name=value", "before"]),
        ("pkcs11:token=a?&", ["name=value", "after"]),
        ("pkcs11:=a", ["name=value"]),
        ("pkcs11:token=my token", ["attribute token", "' '", "%20"]),
        ("pkcs11:token=a/b", ["attribute token", "%2F"]),
        ("pkcs11:token=á", ["attribute token", "%C3%A1"]),
        ("pkcs11:?module-path=/a#b", ["module-path", "%23"]),
        ("pkcs11:token=\udcff", ["attribute token", "must be written"]),  # as os.environ gives broken UTF-8
        ("pkcs11:token=100%", ["attribute token", "%25"]),
        ("pkcs11:token=%zz", ["attribute token", "hexadecimal"]),
        ("pkcs11:token=%FF", ["attribute token", "UTF-8"]),
        ("pkcs11:type=key", ["attribute type", "secret-key"]),
        ("pkcs11:library-version=1.2.3", ["library-version", "2.40"]),
        ("pkcs11:slot-id=0x1", ["slot-id", "decimal"]),
        ("pkcs11:slot-id=", ["slot-id", "decimal"]),
        (f"pkcs11:slot-id={2**64}", ["slot-id", "2^64"]),
        (f"pkcs11:slot-id={'9' * 5000}", ["slot-id", "decimal"]),
    ],
)
def test_refusal_names_the_attribute_and_the_remedy(text: str, words: list[str]) -> None:
    with pytest.raises(Pkcs11UriError) as caught:
        Pkcs11Uri.parse(text)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "pkcs11:token=Software%20PKCS%2311%20softtoken;manufacturer=Snake%20Oil,%20Inc.?pin-value=739155",  # RFC
        "pkcs11:token=a;pin-value=739155",
        "pkcs11:token=a&pin-value=739155",
        "pkcs11:token=a?module-path=/a?pin-value=739155",
        "pkcs11:token=a?x-pin-value=739155",
        "pkcs11:token=a?PIN-VALUE=739155",
        "pkcs11:token=a b?pin-value=739155",
    ],
)
def test_a_pin_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(Pkcs11UriError, match=r"pin-value: .*process lists and logs.*pin-source") as caught:
        Pkcs11Uri.parse(text)
    assert "739155" not in str(caught.value)


@pytest.mark.parametrize("text", ["pkcs11:?pin-valu=739155", "pkcs11:pin=739155", "pkcs11:739155"])
def test_values_of_unknown_attributes_are_not_repeated(text: str) -> None:
    with pytest.raises(Pkcs11UriError) as caught:
        Pkcs11Uri.parse(text)
    assert "739155" not in str(caught.value)
