"""Clean paragraphs out of manual pages, HTML, fortunes, the Wiktionary and word senses, against answers worked out by hand."""

import bz2
import html
import json
import sqlite3
import struct
from collections import Counter

import pytest

from lib import extraction, instructions, roff
from lib.errors import UserError

PAGE = r""".\" a comment
.TH GETENT 1 "7 января 2023" "Linux"
.SH ИМЯ
getent \- возвращает записи
.SH СИНТАКСИС
.nf
\fBgetent\fP база
.fi
.SH ОПИСАНИЕ
Команда \fBgetent\fP(1) отображает
записи, см. \fI/etc/nsswitch.conf\fP.
.PP
Второй абзац с \(lqкавычками\(rq и\ \[u0436]уком.
.TP
.B \-h
Справка.
.TP
.B \-q
.TQ
.B \-\-quiet
Молчать.
.TP
.BR \-\-all ", " \-a
Всё \
сразу.
.IP \(bu 2
Пункт списка.
.IP EINVAL
Неверное значение.
.EX
int main(void);
.EE
.TS
a b
c d
.TE
.UR http://example.org
Сайт
.UE .
.SH СМ. ТАКЖЕ
.BR passwd (5)
"""


def test_a_manual_page_becomes_paragraphs():
    assert roff.paragraphs(PAGE, {"см. также"}) == [
        "ИМЯ",
        "getent - возвращает записи",
        "ОПИСАНИЕ",
        "Команда getent(1) отображает записи, см. /etc/nsswitch.conf.",
        "Второй абзац с “кавычками” и жуком.",
        "-h: Справка.",
        "-q, --quiet: Молчать.",
        "--all, -a: Всё сразу.",
        "Пункт списка.",
        "EINVAL: Неверное значение.",
        "Сайт.",
    ]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"\fBa\f[CW]b\f(CWc\fP", "abc"),
        (r"\s-1A\s0\s+2B\s0", "AB"),
        (r"a\-b\ec\&d\|e\~f", r"a-b\cde f"),
        (r"\(aq\(dq\[aq]\*(lqx\*(rq", "'\"'“x”"),
        (r"x\h'2n'y\v'1'z", "xyz"),
        (r"text \" comment", "text "),
        (r"\[u041F]\[char65]\(bu", "ПA•"),
    ],
)
def test_escapes(source, text):
    assert roff.unescape(source) == text


def test_sections_are_dropped_with_their_subsections():
    page = ".SH A\nодин\n.SH SEE ALSO\nдва\n.SS sub\nтри\n.SH B\n.SS C\nчетыре\n.SH EMPTY\n"
    assert roff.paragraphs(page, {"see also"}) == ["A", "один", "C", "четыре"]


def test_an_unclosed_code_block_ends_at_the_next_section():
    assert roff.paragraphs(".SH A\nодин\n.nf\ncode\n.SH B\nдва\n") == ["A", "один", "B", "два"]


def test_mdoc_and_alias_pages_are_counted_and_left_out(tmp_path):
    (tmp_path / "a.1").write_text(".Dd May 1\n.Dt LS 1\n.Sh NAME\n")
    (tmp_path / "b.1").write_text(".so man1/a.1\n")
    (tmp_path / "c.1").write_bytes('.\\" -*- coding: KOI8-R -*-\n.SH ИМЯ\nкраткое имя\n'.encode("koi8-r"))
    (tmp_path / "d.1").write_bytes(b".SH X\nbroken \xff byte\n")
    skipped = Counter()
    units = list(extraction.man(sorted(tmp_path.iterdir()), (), skipped))
    assert units == [["ИМЯ", "краткое имя"], ["broken byte"]]  # a title of one letter is no text
    assert skipped == {"mdoc_page": 1, "alias_page": 1, "files_with_invalid_utf8": 1}


HTML = """<?xml version="1.0" encoding="utf-8"?>
<html><head><title>T</title><style>p{}</style></head><body>
<header><p>Справка LibreOffice 7.4</p></header>
<div id="DisplayArea">
 <h1>Панель<a class="headerlink">¶</a></h1>
 <p class="paragraph">Первый <b>абзац</b>,<br>со   связкой.</p>
 <div class="howtoget"><p>Доступ к этой команде</p></div>
 <p>Нажмите <span class="switchinline"><span hidden="true" id="MACx" class="MAC">Command</span><span id="defaultx">Ctrl</span></span>+F.</p>
 <ul><li>Пункт <pre>code</pre>раз</li><li><p>Пункт два</p></li></ul>
 <dl><dt>Термин</dt><dd>Его значение.</dd></dl>
 <table><tr><th>Имя</th><th>Смысл</th></tr><tr><td>A</td><td><p>Первое</p></td></tr></table>
 <h2>См. также</h2><p>Ссылка</p>
 <h2>Пустой</h2>
 <h2>Конец</h2><p>Повтор</p><p>Повтор</p><p>Скрытое &lt;emth&gt;слово&lt;/emth&gt; .</p>
 <p class="embedded"><a href="x">Другая страница</a></p>
</div>
<footer><p>Debug</p></footer><script>x()</script></body></html>"""


def test_an_html_page_becomes_paragraphs():
    assert extraction.html_paragraphs(HTML, {"см. также"}) == [
        "Панель",
        "Первый абзац, со связкой.",
        "Нажмите Ctrl+F.",
        "Пункт раз",
        "Пункт два",
        "Термин: Его значение.",
        "Имя — Смысл",
        "A — Первое",
        "Конец",
        "Повтор",
        "Скрытое слово.",
    ]


def test_html_without_text_has_no_paragraphs():
    assert extraction.html_paragraphs("") == []
    assert extraction.html_paragraphs("<html><body><nav>Меню</nav></body></html>") == []


def test_fortunes_join_wrapped_lines_and_keep_verse_and_dialogue(tmp_path):
    (tmp_path / "a").write_text(
        "Если подчинённый говорит о трудностях поставленной задачи, он\nваша основная трудность!\n\t\t-- Евгений Кащеев\n%\n"
        "- Кто там?\n- Это я.\n%\n"
        "/\\_/\\ (o.o) > ^ < ====== #### a\n%\n",
        encoding="utf-8",
    )
    (tmp_path / "a.dat").write_bytes(b"\x00\x01")
    assert list(extraction.fortunes(sorted(tmp_path.iterdir()), Counter())) == [
        ["Если подчинённый говорит о трудностях поставленной задачи, он ваша основная трудность! — Евгений Кащеев"],
        ["- Кто там?", "- Это я."],
    ]


def test_wiktionary_markup():
    markup = (
        "{{разг.|ru}} [[крутой]] [[нрав|норов]], ''упрямый'' {{итп}} {{пример|У него {{выдел|норов}}{{-}}не сахар"
        "|А. П. Чехов|Дуэль|1891|источник=НКРЯ}} {{пример|}} {{пример|Он {{выдел|упрям}} донельзя}}\n#"
    )
    assert extraction.wiki_entry(markup) == (
        "разг. крутой норов, упрямый и т. п.",
        ["У него норов — не сахар (А. П. Чехов, «Дуэль»)", "Он упрям донельзя."],
    )
    assert extraction.wiki_entry("{{действие|играть}}; {{=|забава}}{{неизвестно|x}}") == (
        "действие по значению глагола «играть»; то же, что забава",
        [],
    )


def test_wiktionary_entries(tmp_path):
    database = tmp_path / "w.db"
    rivers = [(i, f"Река{i}", f"Река{i}~ru~Река{i}~ru~[[река]]~1~2") for i in range(7)]
    long = "Очень длинный пример " * 7
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE synsets(synset_id INTEGER, lemma TEXT, definition TEXT)")
        rows = [
            *rivers,
            (8, "аир", "аир~ru~аир~ru~{{бот.}} болотное растение {{пример|Цвёл аир на болоте.}}~1~2"),
            (9, "бор", f"бор~ru~бор~ru~лес {{{{пример|{long}}}}}~1~2"),
            (10, "зад", "зад~ru~зад~ru~{{обсц.}} нечто~1~2"),
            (11, "ноль", "ноль~ru~ноль~ru~{{семантика|x}}~1~2"),
        ]
        connection.executemany("INSERT INTO synsets VALUES (?, ?, ?)", rows)
    skipped = Counter()
    units = list(extraction.wiktionary(database, skipped))
    assert units[-2:] == [
        ["аир — бот. болотное растение. Цвёл аир на болоте."],
        ["бор — лес.", long.strip() + "."],
    ]
    assert len(units) == 5 + 2
    assert skipped == {"same_pattern_entry": 2, "obscene_entry": 1, "empty_entry": 1}


def wiki_dump(*pages):
    """An XML dump of (title, namespace, markup)."""
    body = "".join(
        f"<page><title>{title}</title><ns>{space}</ns><id>{number}</id>"
        f"<revision><id>{number}</id><text>{html.escape(markup)}</text></revision></page>"
        for number, (title, space, markup) in enumerate(pages, start=1)
    )
    return f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{body}</mediawiki>'.encode()


@pytest.mark.parametrize("pack", [bytes, bz2.compress])
def test_articles_of_a_wiki_dump_without_their_markup(tmp_path, pack):
    albedo = """{{Infobox|name=Albedo}}
'''Albedo''' ({{IPA|x}}) is the [[diffuse reflection|reflecting power]] of a surface.<ref>Budikova</ref> Its scale has no unit , as ratios have none.

== Terrestrial ==
* A list item. Its second sentence is long enough to be kept as a paragraph, were it not in a list.
Short one.
{| class="wikitable"
| fresh snow, which is a cell with more than sixty characters in it. || 0.9
|}
Fields of fresh snow reflect nine tenths of the light that falls on them, in the visible range. And then a fragm"""
    pages = [
        ("AccessibleComputing", 0, "#REDIRECT [[Computer accessibility]] {{R from CamelCase}}"),
        ("Вычисления", 0, "#перенаправление [[Вычисление]]"),
        ("Talk", 1, "This is a page of discussion, which no reader of an encyclopaedia ever wants to see."),
        ("Albedo", 0, albedo),
        ("Empty", 0, "{{stub}}"),
    ]
    dump = tmp_path / ("dump.xml" if pack is bytes else "dump.xml.bz2")
    dump.write_bytes(pack(wiki_dump(*pages)))
    skipped = Counter()
    assert list(extraction.wikipedia([dump], skipped)) == [
        [
            "Albedo is the reflecting power of a surface. Its scale has no unit, as ratios have none.",
            "Fields of fresh snow reflect nine tenths of the light that falls on them, in the visible range.",
        ]
    ]
    assert skipped == {"redirect": 2, "empty_page": 1}


def test_what_is_no_wiki_dump_is_refused_by_name(tmp_path):
    whole = wiki_dump(("A", 0, "A page whose only sentence is long enough to be kept as a paragraph."))
    for name, content in {
        "cut.xml": whole[:-40],
        "cut.xml.bz2": bz2.compress(whole)[:-10],
        "text.xml": b"no markup at all",
        "other.xml": b"<html/>",
        "text.xml.bz2": b"not compressed",
        "empty.xml": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: not a dump of a wiki"):
            list(extraction.wikipedia([tmp_path / name], Counter()))


def test_contexts_keep_whole_sentences(tmp_path):
    line = "обрывок начала. Мы\t бродили\t по городу до самого утра и ни о чём не жалели потом. И вдруг об\t\t1"
    (tmp_path / "a.txt").write_text(f"\t\tзначение\t1\n{line}\nтолько\t слово\t без конца\t1\n", encoding="utf-8")
    context = ["Он долго", " белил", " потолок в комнате, пока не стемнело за окнами совсем. Потом"]
    (tmp_path / "b.json").write_text(json.dumps([{"0": "x"}, [[context, "1"]]]), encoding="utf-8")
    skipped = Counter()
    assert list(extraction.word_senses(sorted(tmp_path.iterdir()), skipped)) == [
        ["Мы бродили по городу до самого утра и ни о чём не жалели потом."],
        ["Он долго белил потолок в комнате, пока не стемнело за окнами совсем."],
    ]
    assert skipped == {"fragment": 1}


def test_documents_are_joined_up_to_the_least_and_cut_beyond_the_most():
    units = [["aa"], ["bb"], ["cccc", "dddd", "eeee"], ["f"]]
    assert list(extraction.shape(units, min_chars=6, max_chars=10)) == [["aa", "bb"], ["cccc", "dddd"], ["eeee"], ["f"]]


def test_untranslated_paragraphs_are_left_out_and_titles_with_nothing_below():
    page = [
        "Панель",
        "Команда.",
        "Строка",
        "Поле",
        "Shows or hides the bar.",
        "Find Bar",
        "Команда ls показывает файлы.",
    ]
    skipped = Counter()
    assert list(extraction.translated([page, ["Only English here."]], ["Cyrillic"], skipped)) == [
        ["Панель", "Команда.", "Find Bar", "Команда ls показывает файлы."]
    ]
    assert skipped == {"untranslated_paragraph": 4}


def test_cleaning():
    assert extraction.clean("е\u0308ж\u00ad ик\u200b\u00a0 « Гроза » \x07.") == "ёж ик «Гроза»."
    assert extraction.clean("файл .bashrc и команда ...") == "файл .bashrc и команда..."
    assert extraction.plain("a  b\r\n\n\n\nc\t") == "a b\n\nc"


@pytest.mark.parametrize(
    ("record", "columns", "expected"),
    [
        (
            {"conversations": [{"from": "human", "value": "Да?"}, {"from": "gpt", "value": " Нет. "}]},
            {"messages": "conversations"},
            [{"role": "user", "content": "Да?"}, {"role": "assistant", "content": "Нет."}],
        ),
        (
            {"q": "Сложи.", "x": "1 и 2", "a": "3"},
            {"prompt": "q", "input": "x", "answer": "a"},
            [{"role": "user", "content": "Сложи.\n\n1 и 2"}, {"role": "assistant", "content": "3"}],
        ),
        (
            {"p": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: ",
             "a": [{"answer": "No", "rank": 2.0}, {"answer": "Yes", "rank": 1.0}]},
            {"prompt": "p", "answer": "a"},
            [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "Yes"},
            ],
        ),
        ({"messages": [{"role": "user", "content": "x"}]}, {}, "the last message is not the assistant's"),
        ({"messages": [{"role": "robot", "content": "x"}]}, {}, "a message of unknown role 'robot'"),
        ({"messages": [{"role": "assistant", "content": ""}]}, {}, "a message without text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, {}, "user and assistant do not take turns"),
        ({}, {}, "no list in 'messages'"),
    ],
)  # fmt: skip
def test_instructions_of_every_shape(record, columns, expected):
    assert instructions.normalise(record, columns) == expected


def write_catalogue(path, pairs, order="<"):
    """A .mo file as GNU gettext's manual lays it out: header, two tables of lengths and offsets, the texts."""
    texts = [text.encode() for column in zip(*pairs, strict=True) for text in column]
    start = 28 + 8 * len(texts)
    places, body = [], b""
    for text in texts:
        places += [len(text), start + len(body)]
        body += text + b"\0"
    header = struct.pack(f"{order}7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    path.write_bytes(header + struct.pack(f"{order}{len(places)}I", *places) + body)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_messages_of_a_program(tmp_path, order):
    said = "Құжат жабылады, сақталмаған өзгерістер жоғалады."
    pairs = [
        ("", "Content-Type: text/plain; charset=UTF-8\n"),
        ("menu\4Close", "Жабу"),
        ("dialog\4The document closes.", "Құжат ~жабылады, _сақталмаған өзгерістер жоғалады."),
        ("%d file is lost\0%d files are lost", "%d файл жоғалды, оны қалпына келтіру мүмкін емес\0көптік түрі"),
        ("ctx\4A message that nobody has translated into Kazakh", "A message that nobody has translated into Kazakh"),
        ("Two paragraphs", "Бірінші абзац, ол ұзақтау болды.\n\nЕкінші абзац snake_case."),
    ]
    skipped = Counter()
    units = list(extraction.messages([write_catalogue(tmp_path / "a.mo", pairs, order)], skipped))
    assert units == [
        [said],
        ["%d файл жоғалды, оны қалпына келтіру мүмкін емес"],
        ["Бірінші абзац, ол ұзақтау болды.", "Екінші абзац snake_case."],
    ]
    assert skipped == {"short_message": 1, "untranslated_message": 1}


def test_what_is_no_catalogue(tmp_path):
    whole = write_catalogue(tmp_path / "a.mo", [("a", "б" * 50)])
    content = whole.read_bytes()
    for spoilt, message in (
        (b"PK\3\4", "not a compiled catalogue"),
        (content[:-20], "cut short"),
        (content[:30], "not a whole catalogue"),
        (content.replace("б".encode(), b"\xff\xfe"), "not a whole catalogue in UTF-8"),
    ):
        whole.write_bytes(spoilt)
        with pytest.raises(UserError, match=message):
            list(extraction.catalogue(whole))


def test_a_page_of_several_articles_is_read_whole():
    source = (
        "<body><h1>Права</h1><article><p>Первая статья.</p></article><article><p>Вторая статья.</p></article></body>"
    )
    assert extraction.html_paragraphs(source) == ["Права", "Первая статья.", "Вторая статья."]
    alone = "<body><p>Меню сайта</p><article><p>Первая статья.</p></article></body>"
    assert extraction.html_paragraphs(alone) == ["Первая статья."]
