"""Which language a text is in, by py3langid (naive Bayes over byte sequences); taken at its word only when sure."""

from __future__ import annotations

from collections.abc import Sequence

UNKNOWN = "unknown"

MIN_CONFIDENCE = 0.5
"""Below this the language is ``unknown``: a word or two, code, numbers, several languages in one conversation.
A sentence of five words lies above it."""

_LOOKED_AT = 2000  # characters; more make nothing surer

_NAMES = {
    **{"af": "Afrikaans", "ar": "Arabic", "az": "Azerbaijani", "be": "Belarusian", "bg": "Bulgarian"},
    **{"bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek"},
    **{"en": "English", "es": "Spanish", "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish"},
    **{"fr": "French", "gl": "Galician", "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian"},
    **{"hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "is": "Icelandic", "it": "Italian"},
    **{"ja": "Japanese", "ka": "Georgian", "kk": "Kazakh", "km": "Khmer", "kn": "Kannada", "ko": "Korean"},
    **{"lo": "Lao", "lt": "Lithuanian", "lv": "Latvian", "mk": "Macedonian", "ml": "Malayalam"},
    **{"mn": "Mongolian", "mr": "Marathi", "ms": "Malay", "my": "Burmese", "ne": "Nepali", "nl": "Dutch"},
    **{"no": "Norwegian", "pa": "Punjabi", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian"},
    **{"ru": "Russian", "si": "Sinhala", "sk": "Slovak", "sl": "Slovenian", "sq": "Albanian", "sr": "Serbian"},
    **{"sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai", "tl": "Tagalog"},
    **{"tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek", "vi": "Vietnamese", "zh": "Chinese"},
}
"""Those that are told apart: close kin such as Wu Chinese would take their share of a short text's confidence."""


def languages(texts: Sequence[str]) -> list[str]:
    """English name of each text's language, or ``unknown``; equal texts are looked at once."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(_NAMES))
    known: dict[str, str] = {}
    for text in texts:
        if text not in known:
            code, confidence = identifier.classify(text[:_LOOKED_AT])
            known[text] = _NAMES[code] if confidence >= MIN_CONFIDENCE else UNKNOWN
    return [known[text] for text in texts]
