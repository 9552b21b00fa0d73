"""Clean paragraphs out of the files that text comes in, and documents of a reasonable size out of paragraphs.

A *unit* is what a file holds: a page, an entry, a quotation, as a list of paragraphs.
"""

import bz2
import gzip
import html
import itertools
import json
import re
import sqlite3
import struct
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

import lxml.etree
import lxml.html

from lib import documents, languages, progress, roff
from lib.errors import UserError

TextFormat = Literal["man", "html", "fortunes", "wiktionary", "wikipedia", "wsd", "gettext"]
TEXT_FORMATS = get_args(TextFormat)
PAGE_CHARS = 500  # a shorter page is joined with the next
ENTRY_CHARS = 3000  # dictionary entries, quotations and contexts are gathered up to about this
MAX_CHARS = 8000  # a longer document is cut between paragraphs
MAX_SAME_PATTERN = 5  # entries alike but for their headword ("a river in Russia") that are kept
MIN_MESSAGE_CHARS = 40  # a shorter message of a program is a label
MIN_CONTEXT_CHARS = 60  # a context or a line of an article whose whole sentences come to less is dropped

BLOCKS = {
    "p", "div", "section", "article", "main", "body", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "dl", "dt", "dd",
    "table", "tbody", "thead", "tr", "td", "th", "caption", "blockquote", "figure", "figcaption", "hr", "address", "center",
}  # fmt: skip
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
NO_PROSE = {
    "script", "style", "nav", "header", "footer", "aside", "form", "button", "noscript", "pre", "img", "svg", "object",
    "iframe", "head", "sup", "input", "select",
}  # fmt: skip
# Page furniture and code in LibreOffice help, DocBook and Sphinx pages.
NO_PROSE_CLASSES = {
    "navheader", "navfooter", "toc", "related", "relatedtopics", "relatedbody", "howtoget", "howtogetheader", "headerlink",
    "sphinxsidebar", "footer", "icontable", "embedded-link", "bug", "debug", "code", "codeintable", "bascode", "pycode",
    "sqlcode", "smathcode", "highlight", "programlisting", "screen", "synopsis", "genindextable", "copyright", "legalnotice",
    "authorgroup", "revhistory", "list-of-examples", "list-of-figures", "list-of-tables", "refsynopsisdiv", "footnote",
    "calloutlist", "cmdsynopsis", "pubdate", "releaseinfo",
}  # fmt: skip
MAIN = ("//*[@id='DisplayArea']", "//*[@role='main']", "//main", "//article", "//body")
MIN_LETTERS = 15  # a shorter paragraph may well be a name
MAX_TITLE_CHARS = 80
INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff\ufff9-\ufffb]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SURROGATE = re.compile("[\ud800-\udfff]")
SENTENCE_END = re.compile(r"[.!?…]+[»\"”)]*(?=\s|$)")
SENTENCE_START = re.compile(r"(?:^|(?<=[.!?…])\s+|(?<=[.!?…][»\"”)])\s+)(?=[«\"“—–-]?\s?[A-ZА-ЯЁ0-9])")


def documents_of_files(
    format: TextFormat,
    files: list[Path],
    *,
    source: str,
    language: str,
    drop_sections: Collection[str],
    drop_untranslated: bool,
    skipped: Counter[str],
) -> Iterator[dict]:
    """Documents of a reasonable size from files of one format.

    Args:
        format: the files' format.
        files: in the order wanted (one database for 'wiktionary').
        source: name of the source, of which the documents' ids are made.
        language: ISO code of the text.
        drop_sections: titles of sections to leave out of manual and HTML pages.
        drop_untranslated: leave out paragraphs that are not in the language's script.
        skipped: counts of what was left out, by reason.
    """
    named = progress.bar(files, title=f"fetch {source}", unit="files")
    titles = {title.lower() for title in drop_sections}
    match format:
        case "man":
            units = man(named, titles, skipped)
        case "html":
            units = html_pages(named, titles, skipped)
        case "fortunes":
            units = fortunes(named, skipped)
        case "wsd":
            units = word_senses(named, skipped)
        case "gettext":
            units = messages(named, skipped)
        case "wikipedia":
            units = wikipedia(named, skipped)
        case "wiktionary":
            units = itertools.chain.from_iterable(wiktionary(file, skipped) for file in named)
    if drop_untranslated:
        units = translated(units, languages.load(language).scripts, skipped)
    least = PAGE_CHARS if format in ("man", "html", "wikipedia") else ENTRY_CHARS
    for number, paragraphs in enumerate(shape(units, min_chars=least), start=1):
        yield {"id": f"{source}-{number:05d}", "text": "\n\n".join(paragraphs), "source": source, "language": language}


def documents_of_records(
    records: Iterable[tuple[str, dict]],
    *,
    column: str,
    source: str,
    language: str | None,
    on_error: documents.OnError,
    skipped: Counter[str],
) -> Iterator[dict]:
    """Documents from a dataset's rows, cleaned.

    Args:
        records: (where it stands, row).
        column: the text's.
        source: name of the source.
        language: given to rows that name none.
        on_error: 'stop' at a broken row, or 'skip' it and count it in `skipped`.
        skipped: counts of what was left out, by reason.

    Raises:
        UserError: a row without text or language, unless it is skipped.
    """
    for number, (where, record) in enumerate(progress.bar(records, title=f"fetch {source}", unit="documents"), start=1):
        text = record.get(column)
        spoken = documents.language_of(record, language)
        problem = None
        if not isinstance(text, str):
            problem = f"no text in '{column}'"
        elif not isinstance(spoken, str):
            problem = "no 'language', and none given by --language"
        elif SURROGATE.search(text):
            problem = "a lone surrogate in the text, which is not valid Unicode"
        if problem is not None:
            if on_error == "stop":
                raise UserError(f"{where}: {problem}; correct it, or say --on_error=skip")
            skipped["broken_record"] += 1
        elif cleaned := plain(text):
            name = str(record.get("id") or f"{source}-{number:05d}")
            yield {"id": name, "text": cleaned, "source": source, "language": spoken}
        else:
            skipped["empty_document"] += 1


def translated(units: Iterable[list[str]], scripts: Collection[str], skipped: Counter[str]) -> Iterator[list[str]]:
    """The units without the paragraphs (of more than a few letters) that are for the most part in another script.

    A title all of whose text goes, goes too.
    """
    for unit in units:
        kept: list[str] = []
        text_went = False
        for text in reversed(unit):
            is_title = len(text) < MAX_TITLE_CHARS and not text.endswith((".", "!", "?", ":", ";", "…", ","))
            foreign = _letters(text) >= MIN_LETTERS and languages.script_share(text, *scripts) < 0.4
            if foreign or (is_title and text_went):
                skipped["untranslated_paragraph"] += 1
                text_went = True
            else:
                kept.append(text)
                text_went = False
        if any(_letters(text) >= MIN_LETTERS for text in kept):
            yield kept[::-1]


def clean(text: str) -> str:
    """One line of text: NFC, no control or invisible characters, single plain spaces, none before punctuation."""
    text = INVISIBLE.sub("", unicodedata.normalize("NFC", text).replace("\n", " "))
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([,.;:!?…)»]+)(?=\s|$)", r"\1", text)
    return re.sub(r"(?<!\S)([«(„]) (?=\w)", r"\1", text)


def decode(content: bytes, skipped: Counter[str]) -> str:
    """Text from bytes that are UTF-8, else from the encoding the file declares, else with the broken bytes left out."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        declared = re.search(rb"(?:coding[:=]\s*|charset=[\"']?)([A-Za-z0-9_-]+)", content[:2000])
        names = [declared[1].decode()] if declared else []
    for name in names:
        try:
            return content.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
    skipped["files_with_invalid_utf8"] += 1
    return content.decode("utf-8", errors="ignore")


def shape(units: Iterable[list[str]], *, min_chars: int, max_chars: int = MAX_CHARS) -> Iterator[list[str]]:
    """Documents: units joined in their order until `min_chars`, cut between paragraphs beyond `max_chars`.

    A paragraph is never cut, so one that is longer than `max_chars` is a document by itself.
    """
    held: list[str] = []
    length = 0
    for unit in units:
        for paragraph in unit:
            if held and length + len(paragraph) > max_chars:
                yield held
                held, length = [], 0
            held.append(paragraph)
            length += len(paragraph) + 2
        if length >= min_chars:
            yield held
            held, length = [], 0
    if held:
        yield held


def man(files: Iterable[Path], drop_sections: Collection[str], skipped: Counter[str]) -> Iterator[list[str]]:
    """Manual pages, gzipped or not."""
    for file in files:
        source = decode(file.read_bytes(), skipped)
        if roff.is_mdoc(source):
            skipped["mdoc_page"] += 1
        elif re.match(r"\s*\.so\s", source):
            skipped["alias_page"] += 1
        elif unit := _cleaned(roff.paragraphs(source, drop_sections)):
            yield unit


def html_pages(files: Iterable[Path], drop_sections: Collection[str], skipped: Counter[str]) -> Iterator[list[str]]:
    """HTML pages without their navigation, code and page furniture."""
    for file in files:
        if unit := html_paragraphs(decode(file.read_bytes(), skipped), drop_sections):
            yield unit
        else:
            skipped["empty_page"] += 1


def html_paragraphs(source: str, drop_sections: Collection[str] = ()) -> list[str]:
    """The prose of an HTML page; a table row is one paragraph, a term and its definition too."""
    source = re.sub(r"^\s*<\?xml[^>]*\?>|&lt;/?emth?&gt;", "", source)
    try:
        tree = lxml.html.document_fromstring(source)
    except (lxml.etree.ParserError, ValueError):
        return []
    # The one part that is the page's own; a text of several articles is none of them.
    main = next((found[0] for path in MAIN if len(found := tree.xpath(path)) == 1), tree)
    blocks: list[tuple[str, str]] = []
    _walk(main, [], blocks)
    return _cleaned(_without_sections(blocks, drop_sections))


def fortunes(files: Iterable[Path], skipped: Counter[str]) -> Iterator[list[str]]:
    """Quotations of fortune files, which a line of `%` separates; attributions follow the text after a dash."""
    for file in files:
        if file.suffix == ".dat":
            continue
        for entry in re.split(r"^%[ \t]*\n?", decode(file.read_bytes(), skipped).replace("\r", ""), flags=re.MULTILINE):
            if unit := _quotation(entry):
                yield unit


def messages(files: Iterable[Path], skipped: Counter[str]) -> Iterator[list[str]]:
    """Translations in the compiled catalogues of GNU gettext (.mo), each message that is more than a label a unit."""
    for file in files:
        for original, translation in catalogue(file):
            # Marks of keys («~» LibreOffice's, «_» GTK's, «&» Qt's) before or inside words; forms of the plural one after another.
            unit = _cleaned(re.sub(r"~|(?<!\w)[_&](?=\w)", "", translation.split("\0")[0]).splitlines())
            if translation == original:
                skipped["untranslated_message"] += 1
            elif sum(map(len, unit)) < MIN_MESSAGE_CHARS:
                skipped["short_message"] += 1
            else:
                yield unit


def catalogue(file: Path) -> Iterator[tuple[str, str]]:
    """(original, translation) of a .mo file, in its order, which is that of the originals; its header is left out.

    The format: seven u32 (magic, revision, number of strings, where the originals' and the translations' tables begin, and two
    of a hash table), then (length, offset) pairs. GNU gettext's manual, "The Format of GNU MO Files".

    Raises:
        UserError: it is none, or cut short.
    """
    content = file.read_bytes()
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(content[:4])
    if order is None:
        raise UserError(f"{file}: not a compiled catalogue of GNU gettext")
    try:
        number, originals, translations = struct.unpack_from(f"{order}3I", content, 8)
        for place in range(number):
            texts = []
            for table in (originals, translations):
                length, offset = struct.unpack_from(f"{order}2I", content, table + 8 * place)
                if offset + length > len(content):
                    raise UserError(f"{file}: cut short")
                texts.append(content[offset : offset + length].decode("utf-8"))
            if texts[0]:
                yield texts[0].rpartition("\4")[2], texts[1]  # what stands before a \4 is the original's context
    except (struct.error, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a whole catalogue in UTF-8 ({error})") from None


def wiktionary(database: Path, skipped: Counter[str]) -> Iterator[list[str]]:
    """Entries of wiki-ru-wordnet's database of the Russian Wiktionary, in the order of their headwords.

    An entry is a headword, its definition and short usage examples; longer examples are paragraphs of their own.
    """
    with sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True) as connection:
        try:
            rows = connection.execute("SELECT lemma, definition FROM synsets ORDER BY lemma, synset_id").fetchall()
        except sqlite3.DatabaseError as error:
            raise UserError(f"{database}: not the database of wiki-ru-wordnet ({error})") from None
    patterns: Counter[str] = Counter()
    for lemma, packed in rows:
        markup = re.sub(r"(~\d*){2}$", "", packed.split("~", 4)[4] if packed.count("~") >= 4 else packed)
        if lemma.startswith("Викисловарь:"):
            skipped["service_page"] += 1
            continue
        if re.search(r"\{\{(?:обсц\.|мат)[|}]", markup):
            skipped["obscene_entry"] += 1
            continue
        definition, examples = wiki_entry(markup)
        if not definition and not examples:
            skipped["empty_entry"] += 1
            continue
        pattern = " ".join([definition, *examples]).replace(lemma, "*")
        patterns[pattern] += 1
        if patterns[pattern] > MAX_SAME_PATTERN:
            skipped["same_pattern_entry"] += 1
            continue
        short = [example for example in examples if len(example) < 120]
        head = f"{lemma} — {definition}" if definition else lemma
        head += "" if head.endswith((".", "!", "?", "…")) else "."
        yield [clean(" ".join([head, *short])), *(example for example in examples if len(example) >= 120)]


def wiki_entry(markup: str) -> tuple[str, list[str]]:
    """(definition, usage examples with their authors) of a Wiktionary entry's markup."""
    text = re.sub(r"<ref[^>]*/>|<ref.*?</ref>|<!--.*?-->", "", markup, flags=re.DOTALL)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
    text = re.sub(r"\[(?:https?:)?//\S+ ?([^\]]*)\]", r"\1", text)
    text = html.unescape(re.sub(r"<br ?/?>|\[\d+\]", " ", text)).replace("||", ";").replace(" // ", " / ")
    examples: list[str] = []
    for _ in range(6):  # templates nest; the innermost go first
        text, found = re.subn(r"\{\{([^{}]*)\}\}", lambda match: _template(match[1], examples), text)
        if not found:
            break
    text = re.sub(r"<[^>]*>|\{\{.*|\}\}|'{2,}|\[\[|\]\]|^[#*:]+|[#*:]+\s*$|<!|-->", " ", text, flags=re.MULTILINE)
    definition = clean(re.sub(r"\(\s*\)|\bот\s*$", "", text)).strip(" ;,:—-")
    definition = re.sub(r"\s*([;,])(?:\s*[;,])+", r"\1", definition)
    return (definition if re.search(r"\w", definition) else ""), examples


def wikipedia(files: Iterable[Path], skipped: Counter[str]) -> Iterator[list[str]]:
    """Articles of a wiki's XML dump (pages-articles, plain or .bz2), which is read page by page whatever its size.

    Raises:
        UserError: a file is no such dump, or a damaged one.
    """
    from gensim.corpora import wikicorpus  # a second, which the other formats need not wait

    for file in files:
        try:
            with bz2.open(file) if file.suffix == ".bz2" else file.open("rb") as dump:
                for _, markup, _ in wikicorpus.extract_pages(dump, filter_namespaces=("0",)):
                    if not markup:  # of another namespace, too
                        continue
                    if re.match(r"\s*#\w+:?\s*\[\[", markup):
                        skipped["redirect"] += 1
                    elif unit := _cleaned(article_paragraphs(wikicorpus.filter_wiki(markup))):
                        yield unit
                    else:
                        skipped["empty_page"] += 1
        except (OSError, EOFError, ValueError, ElementTree.ParseError) as error:
            raise UserError(f"{file}: not a dump of a wiki's pages, or a damaged one ({error})") from None


def article_paragraphs(text: str) -> Iterator[str]:
    """The lines of an article that hold whole sentences, its markup (most of it gone before) taken off."""
    for line in text.split("\n"):
        if not re.match(r"\s*[=*#:;|!{}+]", line):
            line = re.sub(r"'{2,}|\(\s*[,;]?\s*\)", "", line)
            sentences = whole_sentences(clean(re.sub(r" +(?=[,.;])", "", line)))
            if len(sentences) >= MIN_CONTEXT_CHARS:
                yield sentences


def word_senses(files: Iterable[Path], skipped: Counter[str]) -> Iterator[list[str]]:
    """Contexts of words in RL-WSD's labelled files: whole sentences only, the fragments at both ends cut off."""
    for file in files:
        source = decode(file.read_bytes(), skipped)
        if file.suffix == ".json":
            parts = [context for context, _ in json.loads(source)[1]]
        elif file.suffix == ".txt":
            lines = [line.split("\t") for line in source.splitlines() if not line.startswith("\t")]
            parts = [line[:3] for line in lines if len(line) >= 3]
        else:
            continue
        for part in parts:
            context = whole_sentences(clean(" ".join(part)))
            if len(context) >= MIN_CONTEXT_CHARS:
                yield [context]
            else:
                skipped["fragment"] += 1


def whole_sentences(text: str) -> str:
    """The text from its first sentence's beginning to its last one's end."""
    start = next((match.end() for match in SENTENCE_START.finditer(text)), len(text))
    end = max((match.end() for match in SENTENCE_END.finditer(text)), default=0)
    return text[start:end]


def plain(text: str) -> str:
    """A document as it came, its lines cleaned and runs of blank lines reduced to one."""
    lines = [clean(line) for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _cleaned(paragraphs: Iterable[str]) -> list[str]:
    """The paragraphs cleaned, without those that hold no word or repeat the one before."""
    found = [clean(paragraph) for paragraph in paragraphs]
    found = [text for text in found if re.search(r"\w\w", text)]
    return [text for text, before in zip(found, ["", *found], strict=False) if text != before]


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _walk(element: lxml.html.HtmlElement, run: list[str], blocks: list[tuple[str, str]]) -> None:
    """Append (tag, text) for each block below `element`; `run` is the inline text since the last block."""
    tag = element.tag if isinstance(element.tag, str) else ""
    if not tag or tag in NO_PROSE or _is_furniture(element):
        if tag:
            run.append(" ")
        return
    if tag == "tr":
        cells = [clean(_text(cell)) for cell in element if cell.tag in ("td", "th")]
        blocks.append(("tr", " — ".join(cell for cell in cells if cell)))
        return
    is_block = tag in BLOCKS
    if is_block:
        _end(run, tag, blocks)
    if tag == "br":
        run.append(" ")
    run.append(element.text or "")
    for child in element:
        _walk(child, run, blocks)
        run.append(child.tail or "")
    if is_block:
        _end(run, tag, blocks)


def _end(run: list[str], tag: str, blocks: list[tuple[str, str]]) -> None:
    text = clean("".join(run))
    run.clear()
    if not text:
        return
    if tag != "dt" and blocks and blocks[-1][0] == "dt":
        text = f"{blocks.pop()[1].rstrip(':')}: {text}"
    blocks.append((tag, text))


def _text(element: lxml.html.HtmlElement) -> str:
    blocks: list[tuple[str, str]] = []
    run: list[str] = [element.text or ""]
    for child in element:
        _walk(child, run, blocks)
        run.append(child.tail or "")
    _end(run, "", blocks)
    return " ".join(text for _, text in blocks)


def _is_furniture(element: lxml.html.HtmlElement) -> bool:
    classes = (element.get("class") or "").split()
    if not NO_PROSE_CLASSES.isdisjoint(classes) or element.get("role") == "navigation":
        return True
    if element.tag == "p" and classes == ["embedded"]:  # LibreOffice help: a link to another page
        return True
    parent = element.getparent()
    # LibreOffice help names a key once per system; the one for all others is what is wanted.
    if parent is not None and "switchinline" in (parent.get("class") or ""):
        variants = [child for child in parent if (child.get("id") or "").startswith("default")]
        return bool(variants) and element not in variants
    return False


def _without_sections(blocks: list[tuple[str, str]], drop_sections: Collection[str]) -> list[str]:
    """The blocks' texts without the named sections and without headings that nothing follows."""
    kept: list[tuple[str, str]] = []
    dropped_below = ""
    for tag, text in blocks:
        if tag in HEADINGS:
            if dropped_below and tag <= dropped_below:
                dropped_below = ""
            if not dropped_below and text.lower().strip(" .:") in drop_sections:
                dropped_below = tag
        if dropped_below:
            continue
        if tag in HEADINGS and kept and kept[-1][0] in HEADINGS and kept[-1][0] >= tag:
            kept.pop()
        kept.append((tag, text))
    while kept and kept[-1][0] in HEADINGS:
        kept.pop()
    return [text for _, text in kept]


def _quotation(entry: str) -> list[str]:
    """Lines that a fixed width broke are joined again; verse and dialogue keep theirs."""
    if len(re.findall(r"[^\W\d_]", entry)) < 0.55 * len(re.sub(r"\s", "", entry)):
        return []  # drawings made of characters
    lines: list[str] = []
    was_full = False
    for line in entry.expandtabs().split("\n"):
        text = clean(line)
        if not text:
            was_full = False
        elif author := re.match(r"(?:--+|—)\s*(.+)", text):
            lines = [*lines[:-1], f"{lines[-1]} — {author[1]}"] if lines and line.startswith("   ") else [*lines, text]
            was_full = False
        else:
            if was_full and not re.match(r"[-—–*]\s", text):
                lines[-1] += " " + text
            else:
                lines.append(text)
            was_full = len(line.rstrip()) >= 55
    return lines


def _template(inside: str, examples: list[str]) -> str:
    """What a template of the Russian Wiktionary reads as; usage examples go to `examples`."""
    name, *arguments = [part.strip() for part in inside.split("|")]
    named = dict(part.split("=", 1) for part in arguments if re.match(r"[а-яёa-z]+=", part))
    given = [part for part in arguments if not re.match(r"[а-яёa-z]+=", part)]
    first = next((part for part in given if part and part != "ru"), "")
    match name:
        case "пример":
            text = clean(re.sub(r"<[^>]*>|'{2,}", "", given[0] if given else named.get("текст", "")))
            author = named.get("автор") or (given[1] if len(given) > 1 else "")
            title = named.get("титул") or (given[2] if len(given) > 2 else "")
            origin = ", ".join(part for part in (author, f"«{title}»" if title and "«" not in title else title) if part)
            if len(re.findall(r"\w+", text)) >= 3:
                text = f"{text} ({origin})" if origin and "http" not in origin else text
                text = clean(re.sub(r"<[^>]*>|'{2,}", "", text))
                examples.append(text if re.search(r"[.!?…)»\"]$", text) else f"{text}.")
            return ""
        case "выдел" | "помета" | "марка" | "кавычки" | "nobr":
            return first
        case "-" | "--" | "—":
            return " — "
        case "п.":
            return "перен."
        case "итп":
            return "и т. п."
        case "итд":
            return "и т. д."
        case "=" | "==":
            return f"то же, что {first}" if first else ""
        case "действие":
            return f"действие по значению глагола «{first}»" if first else ""
        case "свойство":
            return f"свойство по значению прилагательного «{first}»" if first else ""
        case "соотн.":
            return f"связанный, соотносящийся по значению с существительным «{first}»" if first else ""
        case "наречие":
            return f"наречие к прилагательному «{first}»" if first else ""
        case "прич." | "страд.":
            return f"причастие от глагола «{first}»" if first else ""
        case "женск." | "умласк." | "уменьш." | "увелич.":
            label = {"умласк.": "уменьш.-ласк."}.get(name, name)
            return f"{label} к «{first}»" if first else label
        case "аббр." | "сокр.":
            return f"сокращение от «{first}»" if first else name
    if name.endswith("."):
        return name
    return ""
