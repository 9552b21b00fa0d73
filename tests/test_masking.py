"""Masking: what is personal and goes, and what only looks like it and stays. All numbers are made up or reserved."""

import dataclasses

import pytest

from lib import languages, masking
from lib.errors import UserError

RU, EN = languages.load("ru"), languages.load("en")


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        # E-mail addresses.
        ("Пишите на ivan.petrov+work@example.com.", RU, "Пишите на <EMAIL>."),
        ("почта: иван@почта.рф, тема любая", RU, "почта: <EMAIL>, тема любая"),
        ("<a_b@sub.mail-server.co.uk>", EN, "<<EMAIL>>"),
        ("a@b.ru,c@d.ru", RU, "<EMAIL>,<EMAIL>"),
        # Telephone numbers, as Russians write them.
        ("Звоните: +7 (495) 123-45-67.", RU, "Звоните: <PHONE>."),
        ("+79161234567", RU, "<PHONE>"),
        ("тел. 8-916-123-45-67", RU, "тел. <PHONE>"),
        ("8 (916) 123 45 67 или 8 916 123-45-68", RU, "<PHONE> или <PHONE>"),
        ("(495) 123-45-67", RU, "<PHONE>"),
        ("495 123-45-67", RU, "<PHONE>"),
        ("моб. 89161234567", RU, "моб. <PHONE>"),
        ("Телефон: 9161234567", RU, "Телефон: <PHONE>"),
        ("8(812)123-45-67, факс 8(812)123-45-68", RU, "<PHONE>, факс <PHONE>"),
        ("Из Лондона: +44 20 7946 0958", RU, "Из Лондона: <PHONE>"),
        # And Americans.
        ("Call (212) 555-0123 now", EN, "Call <PHONE> now"),
        ("call 1-212-555-0123; our staff", EN, "call <PHONE>; our staff"),
        ("212-555-0123", EN, "<PHONE>"),
        ("phone: 2125550123", EN, "phone: <PHONE>"),
        ("+1 212 555 0123", EN, "<PHONE>"),
        # Cards: numbers that the payment systems publish for tests.
        ("карта 4111 1111 1111 1111", RU, "карта 4111 1111 1111 1111"),  # two different digits: an example
        ("карта 4242 4242 4242 4242 действует", RU, "карта 4242 4242 4242 4242 действует"),
        ("карта 4012 8888 8888 1881", RU, "карта <CARD>"),
        ("карта 5105105105105100", RU, "карта 5105105105105100"),
        ("Сбер 2202 2006 2345 6785", RU, "Сбер <CARD>"),
        ("5555-3412-4444-1115", EN, "<CARD>"),
        ("Amex 3714 496353 98431", EN, "Amex <CARD>"),
        ("6011000990139424", EN, "<CARD>"),
        # All three.
        ("ivan@example.com, +7 916 123-45-67, 2202200623456785", RU, "<EMAIL>, <PHONE>, <CARD>"),
    ],
)  # fmt: skip
def test_personal_data(text, language, expected):
    masked, counts = masking.mask(text, language)
    assert masked == expected
    assert counts == {kind: expected.count(mark) for kind, mark in masking.PLACEHOLDERS.items() if mark in expected}
    assert masking.mask(masked, language) == (masked, {})


@pytest.mark.parametrize("language", [RU, EN])
@pytest.mark.parametrize(
    "text",
    [
        # Dates and times.
        "12.04.2021 15:30:45", "2024-01-15 10:30:00", "в 1941-1945 и 1914-1918 годах", "с 01.02.2003 по 04.05.2006", "20240115103000",
        # Books and journals.
        "ISBN 978-5-699-12014-7", "ISBN 5-699-12014-7", "ISBN: 0-306-40615-2", "ISSN 0028-0836", "doi:10.1000/182-4567890", "УДК 811.161.1'373",
        # Versions and addresses on the net.
        "версия 10.0.19041.1234", "Linux 5.15.0-91-generic", "192.168.100.200", "10.20.30.40:8080", "v1.234.567.8901",
        # Accounts and taxes.
        "IBAN DE89 3704 0044 0532 0130 00", "GB29 NWBK 6016 1331 9268 19", "ИНН 7707083893", "ИНН 500100732259", "ОГРН 1027700132195",
        "СНИЛС 112-233-445 95", "р/с 40702810900000012345", "БИК 044525225", "паспорт 4509 123456", "КПП 770701001",
        # Identifiers and numbers.
        "id=79161234567", "заказ № 89161234567", "89161234567", "#4951234567", "user_79161234567", "/79161234567/", "1.9599639845", "3,1415926535",
        "1 234 567 890", "10 000 000 000 рублей", "население 1 425 671 352 человек", "4532015112830366123456", "4532 0151 1283 0367",
        "0000 0000 0000 0000", "1234 5678 9012 3452", "12345678901234567890", "f(123, 4567890)", "1 — 31000.99\n\n2 — 3200", "9 8 7 6 5 4 3 2 1 0",
        "7 495 1 2 3 4 5", "координаты 55.755826, 37.617300", "1-2-3-4-5-6-7-8-9-10", "ГОСТ 34.601-90, ГОСТ 19.701-90", "550e8400-e29b-41d4-a716-446655440000",
        # What is not an address.
        "user@localhost", "@ivan_petrov", "5 кг @ 100 р.", "a@b", "git@", "импорт @dataclasses.dataclass", "см. п. 3@4.5",
    ],
)  # fmt: skip
def test_what_only_looks_like_it(text, language):
    assert masking.mask(text, language) == (text, {})


def test_without_a_language_only_international_numbers():
    assert masking.mask("8 (495) 123-45-67 и +7 495 123-45-67") == ("8 (495) 123-45-67 и <PHONE>", {"phone": 1})
    nowhere = dataclasses.replace(RU, phone_region="")
    assert masking.mask("8 (495) 123-45-67", nowhere)[1] == {}
    with pytest.raises(UserError, match="language 'ru': phone_region: there is no country 'ZZ'"):
        masking.mask("8 (495) 123-45-67", dataclasses.replace(RU, phone_region="ZZ"))


@pytest.mark.parametrize(
    ("number", "valid"),
    [
        ("2202 2006 2345 6785", True),
        ("2202 2006 2345 6786", False),  # Luhn
        ("1202 2006 2345 6784", False),  # no issuer
        ("3714 496353 98431", True),
        ("5555-3412-4444-1115", True),
    ],
)
def test_card_numbers(number, valid):
    assert masking.is_card(number) is valid


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00",
        "@" * 5000,
        "a" * 50_000 + "@",
        "1" * 100_000,
        "+7 " * 10_000,
        "a.b-" * 20_000,
        "(" * 5000,
        "8-" * 20_000,
    ],
)
def test_hostile_text_is_neither_changed_nor_slow(text):
    assert masking.mask(text, RU) == (text, {})
