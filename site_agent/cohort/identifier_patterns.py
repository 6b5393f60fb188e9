"""How the 18 classes of identifiers of 45 CFR 164.514(b)(2)(i), A to R, look: by a column's name, and by a word in it.

Names are compared by their words (`patient_name`, `PatientName` and `patient-name` are one), in English, German,
French and Spanish where a hospital's export is likely to use them. Pure; it errs towards finding.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal, get_args

Class = Literal["A", "B", "C", "D", "E", "F", "G", "H", "I", "J", "K", "L", "M", "N", "O", "P", "Q", "R"]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


CLASSES: tuple[Class, ...] = get_args(Class)
MEANING: dict[Class, str] = {
    "A": "names",
    "B": "places smaller than a state",
    "C": "dates finer than a year, and ages of 90 and over",
    "D": "telephone numbers",
    "E": "fax numbers",
    "F": "e-mail addresses",
    "G": "social security numbers",
    "H": "medical record numbers",
    "I": "health plan numbers",
    "J": "account numbers",
    "K": "certificate and license numbers",
    "L": "vehicle identifiers",
    "M": "device identifiers",
    "N": "web addresses",
    "O": "IP addresses",
    "P": "biometric identifiers",
    "Q": "full-face photographs",
    "R": "other unique numbers and codes",
}
NUMBERED = _set("id ids identifier no nr nbr num number code nummer numero key serial")
STREET = _set("street address addr adresse strasse rue latitude longitude lat lon geocode")
POSTAL = _set("zip zip3 zip5 zipcode postcode postal postleitzahl plz")
AGE = _set("age alter edad")
BIRTH_YEAR = (("birth", "year"), ("year", "birth"), ("year", "of", "birth"), ("yob",), ("geburtsjahr",))
_THINGS = _set(
    "drug medication test study device hospital ward gene variable column unit class brand product "
    "procedure diagnosis site lab assay code"
)
# The first class that fits is told, so the narrower ones stand first: an e-mail address is no address of a house.
_WORDS: dict[Class, frozenset[str]] = {
    "F": _set("email mail"),
    "N": _set("url uri website homepage"),
    "O": _set("ip ipv4 ipv6 ipaddress"),
    "D": _set("phone telephone telefon telefono cellphone handy tel"),
    "E": _set("fax telefax"),
    "G": _set("ssn sozialversicherungsnummer socialsecurity"),
    "H": _set("mrn pid fallnummer patientid patientnumber recordnumber"),
    "I": _set("beneficiary hicn mbi"),
    "J": _set("iban accountno"),
    "K": _set("license licence passport dea npi"),
    "L": _set("vehicle vin licenseplate kennzeichen"),
    "M": _set("udi imei serialnumber deviceid"),
    "P": _set("biometric fingerprint voiceprint irisscan retinascan"),
    "Q": _set("photo photograph portrait selfie face"),
    "R": _set("uuid guid barcode personnummer cpr bsn nhsnumber"),
    "A": _set(
        "surname lastname firstname forename fullname givenname maiden initials nachname vorname prenom "
        "apellido nombre username"
    ),
    "C": _set("date dates dob birthdate birthday datum geburtsdatum fecha timestamp datetime"),
    "B": STREET | _set("city town county precinct district parish municipality stadt ville ort"),
}
_NUMBERS_OF: dict[Class, frozenset[str]] = {
    "D": _set("mobile contact"),
    "G": _set("security sozialversicherung"),
    "H": _set("patient record chart admission encounter visit fall"),
    "I": _set("plan member insurance policy medicare medicaid subscriber kasse"),
    "J": _set("account konto billing invoice"),
    "K": _set("certificate"),
    "L": _set("plate"),
    "M": _set("device implant pacemaker"),
    "P": _set("finger voice retina iris"),
    "R": _set("nhs national unique subject participant person sample specimen accession serial"),
}
_TEXT: tuple[tuple[Class, re.Pattern[str]], ...] = (
    ("F", re.compile(r"[^@\s]+@[^@\s]+\.[A-Za-z]{2,}")),
    ("N", re.compile(r"(?:https?|ftp)://\S+|www\.\S+", re.IGNORECASE)),
    ("O", re.compile(r"(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}")),
    ("G", re.compile(r"\d{3}-\d{2}-\d{4}")),
    ("C", re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ].*)?|\d{1,2}[./-]\d{1,2}[./-](?:\d{2}|\d{4})")),
    ("R", re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")),
    ("L", re.compile(r"(?=.*\d)(?=.*[A-HJ-NPR-Z])[A-HJ-NPR-Z0-9]{17}")),
    ("B", re.compile(r"\d{5}-\d{4}|[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}")),
    ("D", re.compile(r"\+?\(?\d[\d ()./-]{7,}\d")),
)


def words_of(name: str) -> tuple[str, ...]:
    """A column's name in its words, lower case."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return tuple(word for word in re.split(r"[^A-Za-z0-9]+", parted.lower()) if word)


def named_class(name: str) -> Class | None:
    """The class that a column's name tells of, or None. Ages, years of birth and postal codes are for their values to
    tell."""
    words = words_of(name)
    joined = "".join(words)
    if any(words == year for year in BIRTH_YEAR):
        return None
    for letter, known in _WORDS.items():
        if any(word in known for word in words) or joined in known:
            return letter
    if {"name", "names"} & set(words) and not _THINGS & set(words):
        return "A"
    for letter, owners in _NUMBERS_OF.items():
        if any(owner in owners and number in NUMBERED for owner, number in pairwise(words)):
            return letter
    return "R" if words[-1:] in (("id",), ("identifier",), ("uid",)) else None


def is_street(name: str) -> bool:
    """Whether the name tells of an address below town and postal code, which a limited data set may not hold."""
    return any(word in STREET for word in words_of(name))


def text_class(text: str) -> Class | None:
    """The class that a level's text has the form of, or None."""
    stripped = text.strip()
    return next((letter for letter, pattern in _TEXT if pattern.fullmatch(stripped)), None)
