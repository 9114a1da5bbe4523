"""Names from CSR and JSON, as the profile says; and the forms that names have."""

import ipaddress
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from pkix.asked import AskedNames
from pkix.attributes import BY_NAME, normalised
from pkix.csr import bounds_in_characters, parse_csr
from pkix.errors import KeyRejected, ProfileViolation
from pkix.general_names import dns_name, email_address, ip_address, require_global, uri
from pkix.profile import Profile
from pkix.profile_rules import AttributeRule, KeyRule, NameRule, Presence, Source
from pkix.subject import CertificateNames, check_key, select_names
from pkix.unsigned import tlv
from tests.support.ca import make_csr
from tests.support.profiles import BUILT_IN, TLS_CLIENT, TLS_SERVER

COMPOSED, DECOMPOSED = "Müller", "Mu\u0308ller"


def rule(name: str, presence: Presence = Presence.OPTIONAL, **more: object) -> AttributeRule:
    kind = BY_NAME[name]
    values = {"max_length": kind.bound, "example": more.get("value", kind.sample), **more}
    return AttributeRule(kind=kind, presence=presence, **values)  # type: ignore[arg-type]


def office(*rules: AttributeRule, **more: object) -> Profile:
    return replace(TLS_CLIENT, subject=(rule("CN", Presence.REQUIRED), *rules), **more)  # type: ignore[arg-type]


def choose(
    profile: Profile,
    asked: AskedNames | None = None,
    *,
    csr: tuple[tuple[x509.ObjectIdentifier, str], ...] = (),
    names: tuple[x509.GeneralName, ...] = (),
) -> CertificateNames:
    with bounds_in_characters():
        extra = tuple(x509.NameAttribute(oid, value, _validate=False) for oid, value in csr)
    return select_names(parse_csr(make_csr(None, extra=extra, names=names)), profile, asked)


def values(chosen: CertificateNames) -> list[str]:
    return [str(attribute.value) for attribute in chosen.subject]


CN, O = (NameOID.COMMON_NAME, "x"), (NameOID.ORGANIZATION_NAME, "Post")  # noqa: E741 - its name


@pytest.mark.parametrize(
    ("source", "in_csr", "in_json", "outcome"),
    [
        (Source.EITHER, "Post", "", "Post"),
        (Source.EITHER, "", "Post", "Post"),
        (Source.EITHER, "Post", "Post", "Post"),
        (Source.EITHER, "Post", "Rail", "say different things"),
        (Source.CSR, "Post", "", "Post"),
        (Source.CSR, "", "Post", "does not take it from the JSON"),
        (Source.CSR, "Post", "Post", "Post"),
        (Source.CLIENT, "", "Post", "Post"),
        (Source.CLIENT, "Post", "", "does not take it from the CSR"),
        (Source.CLIENT, "Post", "Rail", "say different things"),
    ],
)
def test_an_attribute_comes_from_where_the_profile_says(
    source: Source, in_csr: str, in_json: str, outcome: str
) -> None:
    profile = office(rule("O", source=source))
    csr = (CN, *([(NameOID.ORGANIZATION_NAME, in_csr)] if in_csr else []))
    asked = AskedNames(subject=(("O", in_json),) if in_json else ())
    if " " not in outcome:
        assert values(choose(profile, asked, csr=csr)) == ["x", outcome]
        return
    with pytest.raises(ProfileViolation, match=outcome) as caught:
        choose(profile, asked, csr=csr)
    assert caught.value.field == ("csr" if not in_json else "subject.O")


@pytest.mark.parametrize(
    ("in_csr", "in_json", "outcome"),
    [
        ("", (), ["a.gov"]),
        ("a.gov", ("A.gov",), ["a.gov"]),
        ("a.gov b.gov", ("b.gov", "a.gov"), ["b.gov", "a.gov"]),
        ("a.gov", ("b.gov",), "say different things"),
        ("a.gov b.gov", ("a.gov",), "say different things"),
    ],
)
def test_alternative_names_in_both_places_are_the_same(
    in_csr: str, in_json: tuple[str, ...], outcome: list[str] | str
) -> None:
    asked = AskedNames(dns_names=in_json or ("a.gov",))
    names = tuple(x509.DNSName(name) for name in in_csr.split())
    if isinstance(outcome, list):
        assert list(choose(TLS_SERVER, asked, names=names).dns_names) == outcome
        return
    with pytest.raises(ProfileViolation, match=outcome) as caught:
        choose(TLS_SERVER, asked, names=names)
    assert caught.value.field == "names.dns"


def test_names_of_all_kinds_come_from_either_place() -> None:
    optional = NameRule(presence=Presence.OPTIONAL, example="sample@example.la")
    profile = office(dns=optional, ip=optional, email=optional, uri=optional)
    asked = AskedNames(
        subject=(("CN", "x"),),
        dns_names=("a.gov",),
        ip_addresses=("2001:DB8::1",),
        emails=("Office@Example.LA",),
        uris=("urn:x:1",),
    )
    from_json = choose(profile, asked)
    assert from_json.emails == ("Office@example.la",)
    assert from_json.ip_addresses == (ipaddress.ip_address("2001:db8::1"),)
    names = (
        x509.UniformResourceIdentifier("urn:x:1"),
        x509.RFC822Name("Office@example.la"),
        x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
        x509.DNSName("a.gov"),
    )
    assert choose(profile, csr=(CN,), names=names) == from_json
    assert AskedNames.from_json(asked.as_json) == asked


def test_order_and_fixed_values_are_the_profiles() -> None:
    profile = office(rule("O", Presence.FIXED, value="Post"), rule("OU", count=2), rule("C"))
    asked = AskedNames(subject=(("C", "LA"), ("OU", "a"), ("CN", "x"), ("OU", "b")))
    assert values(choose(profile, asked)) == ["x", "Post", "a", "b", "LA"]
    assert values(choose(profile, csr=(O, CN))) == ["x", "Post"]
    for csr, field in (((CN, (NameOID.ORGANIZATION_NAME, "Rail")), "csr"), ((CN,), "subject.O")):
        given = AskedNames(subject=(("O", "Rail"),) if field != "csr" else ())
        with pytest.raises(ProfileViolation, match="is not 'Post'") as caught:
            choose(profile, given, csr=csr)
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("profile", "asked", "refusal", "field"),
    [
        (office(), AskedNames(subject=(("cn", "x"),)), "attribute cn is not allowed", "subject.cn"),
        (office(), AskedNames(subject=(("O", "x"),)), "attribute O is not allowed", "subject.O"),
        (office(), AskedNames(), "needs CN", "subject.CN"),
        (office(rule("O", pattern=None), any_subject=(frozenset({"O"}),)), AskedNames(subject=(("CN", "x"),)), "needs O", "subject"),
        (office(), AskedNames(subject=(("CN", "x "),)), "ends with a blank", "subject.CN"),
        (office(), AskedNames(subject=(("CN", "x\u200b"),)), "invisible", "subject.CN"),
        (office(), AskedNames(subject=(("CN", "x" * 65),)), "too long", "subject.CN"),
        (office(rule("C")), AskedNames(subject=(("CN", "x"), ("C", "Laos"))), "too long", "subject.C"),
        (office(rule("emailAddress")), AskedNames(subject=(("CN", "x"), ("emailAddress", "ກ@a.la"))), "ASCII", "subject.emailAddress"),
        (office(rule("DC")), AskedNames(subject=(("CN", "x"), ("DC", "a.b"))), "one label", "subject.DC"),
        (BUILT_IN["smime-public"], AskedNames(subject=(("C", "LA"), ("O", "x"), ("organizationIdentifier", "7"))), "form that the profile wants", "subject.organizationIdentifier"),
        (BUILT_IN["smime"], AskedNames(subject=(("CN", "x"),)), "no e-mail address", "names.email"),
        (BUILT_IN["device"], AskedNames(subject=(("CN", "x"), ("O", "x"), ("serialNumber", "7")), uris=("urn:x:1",)), "form that profile device", "names.uri"),
        (BUILT_IN["device"], AskedNames(subject=(("CN", "x"), ("O", "x"), ("serialNumber", "7")), dns_names=("*.a.gov",)), "no wildcards", "names.dns"),
        (BUILT_IN["operator"], AskedNames(subject=(("CN", "x"), ("O", "x"), ("serialNumber", "7")), emails=("a@a.la", "b@a.la")), "more than 1 names", "csr"),
        (TLS_SERVER, AskedNames(dns_names=("a.gov",), emails=("a@a.la",)), "no e-mail addresses", "names.email"),
        (BUILT_IN["tls-server-public-dv"], AskedNames(ip_addresses=("10.0.0.1",)), "public internet", "names.ip"),
        (BUILT_IN["tls-server-public-dv"], AskedNames(dns_names=("intranet",)), "public trust", "names.dns"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_names_its_field(
    profile: Profile, asked: AskedNames, refusal: str, field: str
) -> None:
    with pytest.raises(ProfileViolation, match=refusal) as caught:
        choose(profile, asked)
    assert caught.value.field == field
    assert caught.value.remedy


def test_a_missing_value_that_only_the_csr_may_give_is_the_csrs_fault() -> None:
    profile = replace(TLS_CLIENT, subject=(rule("CN", Presence.REQUIRED, source=Source.CSR),))
    with pytest.raises(ProfileViolation, match="needs CN") as caught:
        choose(profile)
    assert caught.value.field == "csr"
    server = replace(TLS_SERVER, dns=replace(TLS_SERVER.dns, presence=Presence.REQUIRED, source=Source.CSR))
    with pytest.raises(ProfileViolation, match="no host") as caught:
        choose(server)
    assert caught.value.field == "csr"


def test_strange_attributes_and_too_many_names_are_refused() -> None:
    with pytest.raises(ProfileViolation, match=r"0\.9\.2342\.19200300\.100\.1\.1 is not allowed"):
        choose(TLS_SERVER, csr=((NameOID.USER_ID, "x"),))
    many = AskedNames(dns_names=tuple(f"h{n}.gov" for n in range(100)), ip_addresses=("192.0.2.7",))
    with pytest.raises(ProfileViolation, match="more than 100 names"):
        choose(TLS_SERVER, many)


def test_a_mailbox_may_stand_in_the_common_name() -> None:
    mailbox = BUILT_IN["smime-public-mailbox"]
    assert choose(mailbox, csr=((NameOID.COMMON_NAME, "a@example.la"),)).emails == ("a@example.la",)
    for common_name in ("example.la", "1.1.1.1"):
        with pytest.raises(ProfileViolation, match="has no"):
            choose(mailbox, csr=((NameOID.COMMON_NAME, common_name),))
    public = replace(BUILT_IN["tls-server-public-dv"], subject=(rule("CN"),), common_name_is_a_name=True)
    assert choose(public, csr=((NameOID.COMMON_NAME, "1.1.1.1"),)).ip_addresses
    with pytest.raises(ProfileViolation, match="public internet"):
        choose(public, csr=((NameOID.COMMON_NAME, "192.0.2.7"),))


@pytest.mark.parametrize("fixed", [False, True])
def test_a_common_name_stands_for_a_name_where_names_may_come_from(fixed: bool) -> None:
    common_name = rule("CN", value="a.gov", presence=Presence.FIXED) if fixed else rule("CN")
    profile = replace(BUILT_IN["tls-server"], subject=(common_name,))
    csr, json = ((NameOID.COMMON_NAME, "a.gov"),), AskedNames(subject=(("CN", "a.gov"),))
    for_csr, for_json = (
        replace(profile, dns=replace(profile.dns, source=source)) for source in (Source.CSR, Source.CLIENT)
    )
    for chosen in (choose(for_csr, csr=csr), choose(for_json, json), choose(for_csr, json, csr=csr)):
        assert chosen.dns_names == ("a.gov",)
    if fixed:
        for one in (for_csr, for_json):
            assert (
                choose(one).dns_names
                == choose(one, json).dns_names
                == choose(one, csr=csr).dns_names
                == ("a.gov",)
            )
        return
    with pytest.raises(ProfileViolation, match="does not take it from the JSON"):
        choose(for_csr, json)
    with pytest.raises(ProfileViolation, match="does not take it from the CSR"):
        choose(for_json, csr=csr)


def test_a_profile_without_a_common_name_may_say_what_it_would_be() -> None:
    profile = replace(BUILT_IN["tls-server"], subject=())
    assert choose(profile, AskedNames(dns_names=("a.gov",))).dns_names == ("a.gov",)


def test_two_writings_of_the_same_letters_are_one() -> None:
    profile = office(rule("O"))
    chosen = choose(
        profile, AskedNames(subject=(("O", DECOMPOSED),)), csr=(CN, (NameOID.ORGANIZATION_NAME, COMPOSED))
    )
    assert tlv(0x0C, COMPOSED.encode()) in chosen.subject.public_bytes()
    assert normalised("ກະຊວງການເງິນ") == "ກະຊວງການເງິນ"


@pytest.mark.parametrize("look_alike", ["\u212a", "\u037e"])
def test_what_would_become_ascii_is_refused(look_alike: str) -> None:
    with pytest.raises(ProfileViolation, match="only looks like"):
        choose(office(), AskedNames(subject=(("CN", f"x{look_alike}"),)))


@pytest.mark.parametrize(
    "hidden", [*"\u00ad\u200b\u202e\ufeff", *"\u034f\u115f\u17b4\u180b\u2800\u3164\ufe0f\uffa0", "\U000e0100"]
)
def test_what_cannot_be_seen_is_refused(hidden: str) -> None:
    for text in (hidden, f"www.min{hidden}istry.gov"):
        with pytest.raises(ProfileViolation, match="invisible"):
            choose(office(), AskedNames(subject=(("CN", text),)))


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("C", 0x13),
        ("serialNumber", 0x13),
        ("dnQualifier", 0x13),
        ("emailAddress", 0x16),
        ("DC", 0x16),
        ("title", 0x0C),
    ],
)
def test_values_are_of_the_string_type_of_their_attribute(name: str, tag: int) -> None:
    kind = BY_NAME[name]
    asked = AskedNames(subject=(("CN", "x"), (name, kind.sample)))
    chosen = choose(office(rule(name)), asked)
    assert kind.oid_der + tlv(tag, kind.sample.encode()) in chosen.subject.public_bytes()
    assert kind.string_type == {0x13: "PrintableString", 0x16: "IA5String", 0x0C: "UTF8String"}[tag]


@pytest.mark.parametrize(
    ("read", "text", "refusal"),
    [
        (email_address, "nobody", "not an e-mail address"),
        (email_address, "a@b@c.la", "not an e-mail address"),
        (email_address, "a..b@example.la", "not an e-mail address"),
        (email_address, "x" * 65 + "@example.la", "not an e-mail address"),
        (email_address, "ຄຳ@example.la", "few mail programs"),
        (email_address, "a@ຄຳ.la", "not a DNS name"),
        (email_address, "a@*.example.la", "wildcard"),
        (email_address, "a@localhost", "public trust"),
        (ip_address, "www", "not an IP address"),
        (ip_address, "fe80::1%eth0", "zone"),
        (uri, "example.la", "not an absolute URI"),
        (uri, "https://exämple.la", "not an absolute URI"),
        (uri, "https://" + "x" * 1024, "not an absolute URI"),
        (uri, "https:///path", "no host"),
        (uri, "https://user@example.la/", "no host"),
        (uri, "https://[::1/", "no host"),
        (uri, "https://a_b.la/", "not a DNS name"),
    ],
)
def test_names_of_a_wrong_form_are_refused(read: Callable[[str, str], object], text: str, refusal: str) -> None:
    with pytest.raises(ProfileViolation, match=refusal) as caught:
        read(text, "here")
    assert caught.value.field == "here"
    assert caught.value.remedy


@pytest.mark.parametrize(
    "text", ["https://example.la/7?a=%20", "http://192.0.2.7/", "https://[2001:db8::1]:8443/", "urn:x:1"]
)
def test_uris_that_are_taken(text: str) -> None:
    assert uri(text, "here") == text


@pytest.mark.parametrize("name", ["intranet", "*.la", "ab--c.example.la"])
def test_names_that_public_trust_does_not_know(name: str) -> None:
    with pytest.raises(ProfileViolation, match="public trust"):
        dns_name(name, "here", public=True)
    assert dns_name(name, "here") == name
    assert dns_name("xn--j1amh.example.la", "here", public=True)


@pytest.mark.parametrize(
    "text",
    [
        *("10.0.0.1", "192.0.0.9", "192.31.196.1", "192.88.99.1", "224.0.0.1", "239.1.1.1"),
        *("::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1", "2001:20::1", "3fff::1"),
        *("fec0::1", "ff0e::1", "4000::1", "2001:db8::1"),
    ],
)
def test_addresses_that_are_no_hosts_of_the_public_internet(text: str) -> None:
    with pytest.raises(ProfileViolation, match="public internet"):
        require_global(ipaddress.ip_address(text), "here")


@pytest.mark.parametrize("text", ["1.1.1.1", "192.0.1.1", "2606:4700:4700::1111", "2001:200::1"])
def test_addresses_of_the_public_internet(text: str) -> None:
    assert str(require_global(ipaddress.ip_address(text), "here")) == text


def test_keys_that_the_profile_does_not_take_are_refused() -> None:
    request = parse_csr(make_csr(key=ec.generate_private_key(ec.SECP521R1())))
    check_key(request, TLS_SERVER)
    with pytest.raises(KeyRejected, match="does not take") as caught:
        check_key(request, BUILT_IN["tls-server-public"])
    assert caught.value.remedy == "make a new key: RSA of 2048 to 4096 bits or ECDSA P-256 or P-384"
    assert str(KeyRule(ed25519=True)) == "Ed25519"
    assert not KeyRule(ec=("P-256",)).allows(object())


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_is_refused_or_becomes_a_name_that_reads_back(organization: str, common_name: str) -> None:
    asked = AskedNames(subject=(("O", organization), ("CN", common_name)))
    request = parse_csr(CSR)
    try:
        chosen = select_names(request, office(rule("O")), asked)
    except ProfileViolation:
        return
    assert values(chosen) == [normalised(common_name), normalised(organization)]
    assert all(len(value) <= 64 for value in values(chosen))


CSR = make_csr(None)
