"""Text banks of the sample data (``arena_distill.data.sample``): facts, questions and the wording of each flaw.

Every fact stands with its true and its false version. Only data lives here.
"""

from __future__ import annotations

from dataclasses import dataclass

MODELS: dict[str, float] = {
    "aurora-70b-chat": 1.1,
    "basalt-34b-instruct": 0.7,
    "cedar-large": 0.4,
    "delta-mini-8b": 0.1,
    "ember-13b": -0.1,
    "fjord-7b-chat": -0.4,
    "garnet-3b": -0.8,
    "harbor-1b-base": -1.3,
}
"""Invented model names with their skill: the log odds by which each flaw becomes rarer."""


@dataclass(frozen=True)
class Bank:
    """Recurring wording of one language, by purpose. ``{core}`` is the short answer to the question."""

    warm_openings: tuple[str, ...]
    warm_closings: tuple[str, ...]
    rude: tuple[str, ...]
    hedges: tuple[str, ...]
    fillers: tuple[str, ...]
    refusals: tuple[str, ...]
    gives_up: tuple[str, ...]
    short_answers: tuple[str, ...]
    evasions: tuple[str, ...]


@dataclass(frozen=True)
class Phrases:
    """Questions and statements of one language other than English; facts stand as (true, false)."""

    capital_prompts: tuple[str, ...]
    capital_statements: tuple[str, ...]
    countries: tuple[tuple[str, str, str], ...]
    sum_prompts: tuple[str, ...]
    sum_statements: tuple[str, ...]
    check_statements: tuple[str, ...]
    topics: tuple[tuple[tuple[str, ...], tuple[tuple[str, str], ...]], ...]


REFUSAL_STARTS = (
    "I'm sorry, but",
    "I apologize, but",
    "Unfortunately,",
    "As an AI language model,",
    "Sorry,",
    "I'm afraid",
    "Thank you for asking, however",
    "I understand why you ask, but",
)
REFUSAL_BODIES = (
    "I can't help with that",
    "I'm not able to answer this question",
    "I cannot assist with this request",
    "I must decline to respond to this",
    "I'm unable to provide that information",
    "this is something I can't do",
    "I don't feel comfortable answering that",
    "I have to pass on this one",
)
REFUSAL_ENDS = (
    ".",
    ". Please ask me something else.",
    ". I would recommend that you consult a qualified professional.",
    ". Is there another topic that I can help you with?",
    " because it may go against my guidelines.",
    ", since I don't have enough context to do it responsibly.",
)
FILLER_STARTS = (
    "It is worth noting that",
    "Many people would say that",
    "Generally speaking,",
    "At the end of the day,",
    "Before going further, remember that",
    "In today's fast-paced world,",
    "As has often been observed,",
    "On a related note,",
    "Needless to say,",
    "Taking everything into account,",
)
FILLER_ENDS = (
    "this topic can be looked at from many different angles.",
    "questions like this one come up in all kinds of situations.",
    "the subject has a long and rich history of its own.",
    "everyone brings a personal perspective to the table.",
    "there is always more to learn about such things.",
    "context matters a great deal in matters like these.",
    "people all over the world have thought about this.",
    "it is important to consider the bigger picture.",
    "one should never underestimate the value of curiosity.",
    "experts and beginners alike find this interesting.",
    "good questions often lead to further questions.",
    "technology keeps changing how we think about this.",
    "a balanced view is usually the most sensible one.",
    "every journey begins with a single step.",
    "there are countless articles and books on the matter.",
    "it depends on what exactly one wants to achieve.",
)

BANKS: dict[str, Bank] = {
    "en": Bank(
        warm_openings=(
            "Great question!",
            "Happy to help!",
            "Sure, let's go through it together.",
            "Of course! Here is what you need.",
            "Thanks for asking!",
            "Certainly! \N{SMILING FACE WITH SMILING EYES}",
            "I'd be glad to help with this.",
            "Good one! Let me walk you through it.",
            "Sorry for any confusion earlier, let me make this clear.",
        ),
        warm_closings=(
            "I hope this helps!",
            "Let me know if you would like more detail.",
            "Feel free to ask if anything is unclear! \N{SMILING FACE WITH SMILING EYES}",
            "Good luck! \N{PARTY POPPER}",
            "Is there anything else I can help you with?",
            "Just ask if you want another example.",
            "Have a lovely day!",
        ),
        rude=(
            "Honestly, anyone should know this.",
            "What a pointless question.",
            "You could have looked this up yourself.",
            "I already get asked this far too often.",
            "Fine, whatever.",
            "This is really basic stuff, try to keep up.",
            "Did you even think before asking?",
        ),
        hedges=(
            "I'm not completely sure, but I think this is right.",
            "I may be wrong about this.",
            "Please double-check this, as I could be mistaken.",
            "I believe so, although I can't be certain.",
            "Don't quote me on it.",
            "It might be something else entirely.",
            "As far as I can remember, anyway.",
            "This is only my best guess.",
        ),
        fillers=tuple(f"{start} {end}" for start in FILLER_STARTS for end in FILLER_ENDS),
        refusals=tuple(
            f"{start} {body}{end}" for start in REFUSAL_STARTS for body in REFUSAL_BODIES for end in REFUSAL_ENDS
        ),
        gives_up=(
            "I'll leave the rest to you.",
            "And so on.",
            "The remaining part works the same way, I guess.",
            "You can figure out the rest.",
            "etc.",
            "That's all for now.",
        ),
        short_answers=(
            "The answer to your question is {core}.",
            "The short answer: {core}. That is everything you asked for.",
            "{core} is what you are looking for, and it is easy to verify.",
        ),
        evasions=(
            "That depends on many things, so there is no simple answer here.",
            "There is a lot to say about this subject, and opinions differ.",
        ),
    ),
    "es": Bank(
        warm_openings=("¡Buena pregunta!", "¡Claro que sí!", "Con mucho gusto te ayudo."),
        warm_closings=(
            "¡Espero que te sirva!",
            "Si tienes otra duda, pregúntame.",
            "¡Que tengas un buen día! \N{SMILING FACE WITH SMILING EYES}",
        ),
        rude=("Eso lo sabe cualquiera.", "Podrías haberlo buscado tú mismo.", "Qué pregunta tan inútil."),
        hedges=("No estoy del todo seguro.", "Puede que me equivoque.", "Conviene que lo compruebes."),
        fillers=(
            "Este tema se puede ver desde muchos puntos de vista.",
            "Siempre hay algo nuevo que aprender.",
            "Cada persona tiene su propia opinión.",
            "En el mundo actual todo cambia muy deprisa.",
        ),
        refusals=(
            "Lo siento, pero no puedo ayudarte con eso.",
            "Disculpa, no puedo responder a esta pregunta.",
            "Como modelo de lenguaje, no me es posible contestar.",
        ),
        gives_up=("El resto te lo dejo a ti.", "Y así sucesivamente.", "Eso es todo por ahora."),
        short_answers=("La respuesta a tu pregunta es {core}.", "En pocas palabras: {core}. Es fácil de comprobar."),
        evasions=(
            "Eso depende de muchas cosas y no hay una respuesta sencilla.",
            "Hay mucho que decir sobre este asunto.",
        ),
    ),
    "de": Bank(
        warm_openings=("Gute Frage!", "Gerne helfe ich dir weiter.", "Natürlich!"),
        warm_closings=(
            "Ich hoffe, das hilft dir weiter!",
            "Frag gerne nach, wenn etwas unklar ist.",
            "Einen schönen Tag noch! \N{SMILING FACE WITH SMILING EYES}",
        ),
        rude=("Das weiß doch jeder.", "Das hättest du selbst nachschlagen können.", "Was für eine überflüssige Frage."),
        hedges=("Ich bin mir nicht ganz sicher.", "Vielleicht irre ich mich.", "Bitte prüfe das lieber noch einmal."),
        fillers=(
            "Dieses Thema lässt sich aus vielen Blickwinkeln betrachten.",
            "Man lernt bekanntlich nie aus.",
            "Jeder Mensch hat dazu seine eigene Meinung.",
            "In der heutigen Zeit ändert sich alles sehr schnell.",
        ),
        refusals=(
            "Es tut mir leid, aber dabei kann ich nicht helfen.",
            "Leider kann ich diese Frage nicht beantworten.",
            "Als Sprachmodell ist mir eine Antwort darauf nicht möglich.",
        ),
        gives_up=("Den Rest überlasse ich dir.", "Und so weiter.", "Das ist vorerst alles."),
        short_answers=(
            "Die Antwort auf deine Frage lautet {core}.",
            "Kurz gesagt: {core}. Das lässt sich leicht überprüfen.",
        ),
        evasions=(
            "Das hängt von vielen Dingen ab, eine einfache Antwort gibt es nicht.",
            "Zu diesem Thema ließe sich vieles sagen.",
        ),
    ),
    "fr": Bank(
        warm_openings=("Bonne question !", "Avec plaisir !", "Bien sûr, je vous explique."),
        warm_closings=(
            "J'espère que cela vous aide !",
            "N'hésitez pas à me poser d'autres questions.",
            "Bonne journée ! \N{SMILING FACE WITH SMILING EYES}",
        ),
        rude=("Tout le monde sait cela.", "Vous auriez pu chercher vous-même.", "Quelle question inutile."),
        hedges=(
            "Je n'en suis pas tout à fait sûr.",
            "Il se peut que je me trompe.",
            "Mieux vaut vérifier cette information.",
        ),
        fillers=(
            "Ce sujet peut être abordé sous de nombreux angles.",
            "On en apprend tous les jours.",
            "Chacun a son propre avis sur la question.",
            "De nos jours, tout change très vite.",
        ),
        refusals=(
            "Je suis désolé, mais je ne peux pas vous aider avec cela.",
            "Malheureusement, je ne peux pas répondre à cette question.",
            "En tant que modèle de langage, il m'est impossible de répondre.",
        ),
        gives_up=("Je vous laisse deviner la suite.", "Et ainsi de suite.", "C'est tout pour le moment."),
        short_answers=("La réponse à votre question est {core}.", "En bref : {core}. C'est facile à vérifier."),
        evasions=(
            "Cela dépend de beaucoup de choses, il n'y a pas de réponse simple.",
            "Il y aurait beaucoup à dire à ce propos.",
        ),
    ),
    "zh": Bank(
        warm_openings=("好问题！", "很高兴为您解答。", "当然可以！"),
        warm_closings=(
            "希望对您有帮助！",
            "如果还有疑问，请随时告诉我。",
            "祝您愉快！\N{SMILING FACE WITH SMILING EYES}",
        ),
        rude=("这种问题谁都知道。", "你自己查一下不就行了。", "真是无聊的问题。"),
        hedges=("我不太确定。", "我可能记错了。", "建议您再核实一下。"),
        fillers=(
            "这个话题可以从很多角度来看。",
            "学习是没有止境的。",
            "每个人都有自己的看法。",
            "当今世界变化非常快。",
        ),
        refusals=("抱歉，我无法帮助您解决这个问题。", "很遗憾，我不能回答这个问题。", "作为一个语言模型，我无法作答。"),
        gives_up=("剩下的请您自己想吧。", "以此类推。", "暂时就说这么多。"),
        short_answers=("您的问题的答案是{core}。", "简单来说：{core}。这很容易验证。"),
        evasions=("这取决于很多因素，没有简单的答案。", "关于这个话题可以说的很多。"),
    ),
    "ja": Bank(
        warm_openings=("いい質問ですね！", "喜んでお手伝いします。", "もちろんです！"),
        warm_closings=(
            "お役に立てば幸いです！",
            "他にも質問があればお気軽にどうぞ。",
            "良い一日を！\N{SMILING FACE WITH SMILING EYES}",
        ),
        rude=("そんなことは誰でも知っています。", "自分で調べればいいでしょう。", "つまらない質問ですね。"),
        hedges=("あまり自信がありません。", "間違っているかもしれません。", "念のため確認してください。"),
        fillers=(
            "この話題はいろいろな角度から見ることができます。",
            "学ぶことに終わりはありません。",
            "人それぞれ意見があります。",
            "現代の世界は変化がとても速いです。",
        ),
        refusals=(
            "申し訳ありませんが、お手伝いできません。",
            "残念ながら、この質問にはお答えできません。",
            "言語モデルとして、回答することができません。",
        ),
        gives_up=("残りはご自分で考えてください。", "以下同様です。", "今のところは以上です。"),
        short_answers=("ご質問の答えは{core}です。", "簡単に言えば{core}です。すぐに確認できます。"),
        evasions=(
            "それは多くの要因によるので、簡単な答えはありません。",
            "この話題については言うことがたくさんあります。",
        ),
    ),
    "ru": Bank(
        warm_openings=("Хороший вопрос!", "С удовольствием помогу.", "Конечно!"),
        warm_closings=(
            "Надеюсь, это поможет!",
            "Если что-то непонятно, спрашивайте.",
            "Хорошего дня! \N{SMILING FACE WITH SMILING EYES}",
        ),
        rude=("Это знает каждый.", "Могли бы и сами посмотреть.", "Какой бессмысленный вопрос."),
        hedges=("Я не совсем уверен.", "Возможно, я ошибаюсь.", "Лучше проверьте эту информацию."),
        fillers=(
            "На эту тему можно смотреть с разных сторон.",
            "Всегда можно узнать что-то новое.",
            "У каждого человека своё мнение.",
            "В современном мире всё быстро меняется.",
        ),
        refusals=(
            "Извините, но я не могу с этим помочь.",
            "К сожалению, я не могу ответить на этот вопрос.",
            "Как языковая модель, я не могу дать ответ.",
        ),
        gives_up=("Остальное додумайте сами.", "И так далее.", "Пока это всё."),
        short_answers=("Ответ на ваш вопрос: {core}.", "Если коротко: {core}. Это легко проверить."),
        evasions=("Это зависит от многих вещей, простого ответа нет.", "На эту тему можно сказать очень много."),
    ),
    "ar": Bank(
        warm_openings=("سؤال جيد!", "يسعدني أن أساعدك.", "بالتأكيد!"),
        warm_closings=(
            "أتمنى أن يفيدك هذا!",
            "إذا كان لديك سؤال آخر فلا تتردد.",
            "أتمنى لك يوماً سعيداً! \N{SMILING FACE WITH SMILING EYES}",
        ),
        rude=("هذا أمر يعرفه الجميع.", "كان بإمكانك أن تبحث بنفسك.", "يا له من سؤال بلا فائدة."),
        hedges=("لست متأكداً تماماً.", "ربما أكون مخطئاً.", "من الأفضل أن تتحقق من ذلك."),
        fillers=(
            "يمكن النظر إلى هذا الموضوع من زوايا كثيرة.",
            "هناك دائماً شيء جديد نتعلمه.",
            "لكل شخص رأيه الخاص.",
            "العالم اليوم يتغير بسرعة كبيرة.",
        ),
        refusals=(
            "آسف، لا أستطيع مساعدتك في هذا.",
            "للأسف لا يمكنني الإجابة عن هذا السؤال.",
            "بصفتي نموذجاً لغوياً، لا يمكنني الإجابة.",
        ),
        gives_up=("أترك لك الباقي.", "وهكذا.", "هذا كل شيء الآن."),
        short_answers=("جواب سؤالك هو {core}.", "باختصار: {core}. من السهل التحقق من ذلك."),
        evasions=("هذا يعتمد على أمور كثيرة ولا توجد إجابة بسيطة.", "هناك الكثير مما يقال عن هذا الموضوع."),
    ),
}

PHRASES: dict[str, Phrases] = {
    "es": Phrases(
        capital_prompts=(
            "¿Cuál es la capital de {x} y cuál es la de {y}?",
            "Dime las capitales de {x} y de {y}, por favor.",
        ),
        capital_statements=("La capital de {x} es {c}.", "{c} es la capital de {x}."),
        countries=(
            ("Francia", "París", "Lyon"),
            ("Italia", "Roma", "Milán"),
            ("Alemania", "Berlín", "Múnich"),
            ("Japón", "Tokio", "Osaka"),
            ("Egipto", "El Cairo", "Alejandría"),
            ("Canadá", "Ottawa", "Toronto"),
            ("Polonia", "Varsovia", "Cracovia"),
            ("Australia", "Canberra", "Sídney"),
        ),
        sum_prompts=("¿Cuánto es {a} más {b}?", "Calcula {a} + {b} y comprueba el resultado."),
        sum_statements=("{a} + {b} = {s}.", "La suma de {a} y {b} es {s}."),
        check_statements=("Para comprobarlo: {s} - {b} = {a}.",),
        topics=(
            (
                ("¿Por qué hay mareas?", "Explícame qué causa las mareas."),
                (
                    (
                        "Las mareas se deben sobre todo a la gravedad de la Luna.",
                        "Las mareas se deben sobre todo al viento del norte.",
                    ),
                    ("El Sol también influye, aunque menos.", "El Sol no influye en absoluto."),
                    (
                        "En la mayoría de las costas hay dos pleamares al día.",
                        "En la mayoría de las costas hay una pleamar al mes.",
                    ),
                ),
            ),
        ),
    ),
    "de": Phrases(
        capital_prompts=(
            "Was ist die Hauptstadt von {x} und was ist die von {y}?",
            "Nenne mir bitte die Hauptstädte von {x} und {y}.",
        ),
        capital_statements=("Die Hauptstadt von {x} ist {c}.", "{c} ist die Hauptstadt von {x}."),
        countries=(
            ("Frankreich", "Paris", "Lyon"),
            ("Italien", "Rom", "Mailand"),
            ("Spanien", "Madrid", "Barcelona"),
            ("Japan", "Tokio", "Osaka"),
            ("Ägypten", "Kairo", "Alexandria"),
            ("Kanada", "Ottawa", "Toronto"),
            ("Polen", "Warschau", "Krakau"),
            ("Australien", "Canberra", "Sydney"),
        ),
        sum_prompts=("Wie viel ist {a} plus {b}?", "Berechne {a} + {b} und mach die Probe."),
        sum_statements=("{a} + {b} = {s}.", "Die Summe von {a} und {b} ist {s}."),
        check_statements=("Zur Probe: {s} - {b} = {a}.",),
        topics=(
            (
                ("Warum gibt es Ebbe und Flut?", "Erkläre mir, wie die Gezeiten entstehen."),
                (
                    (
                        "Die Gezeiten entstehen vor allem durch die Schwerkraft des Mondes.",
                        "Die Gezeiten entstehen vor allem durch den Nordwind.",
                    ),
                    ("Auch die Sonne wirkt mit, aber schwächer.", "Die Sonne spielt dabei überhaupt keine Rolle."),
                    (
                        "An den meisten Küsten gibt es zweimal am Tag Hochwasser.",
                        "An den meisten Küsten gibt es einmal im Monat Hochwasser.",
                    ),
                ),
            ),
        ),
    ),
    "fr": Phrases(
        capital_prompts=(
            "Quelle est la capitale {x} et quelle est celle {y} ?",
            "Donnez-moi la capitale {x} et celle {y}, s'il vous plaît.",
        ),
        capital_statements=("La capitale {x} est {c}.", "{c} est la capitale {x}."),
        countries=(
            ("de l'Allemagne", "Berlin", "Munich"),
            ("de l'Italie", "Rome", "Milan"),
            ("de l'Espagne", "Madrid", "Barcelone"),
            ("du Japon", "Tokyo", "Osaka"),
            ("de l'Égypte", "Le Caire", "Alexandrie"),
            ("du Canada", "Ottawa", "Toronto"),
            ("de la Pologne", "Varsovie", "Cracovie"),
            ("de l'Australie", "Canberra", "Sydney"),
        ),
        sum_prompts=("Combien font {a} plus {b} ?", "Calculez {a} + {b} et vérifiez le résultat."),
        sum_statements=("{a} + {b} = {s}.", "La somme de {a} et {b} est {s}."),
        check_statements=("Pour vérifier : {s} - {b} = {a}.",),
        topics=(
            (
                ("Pourquoi y a-t-il des marées ?", "Expliquez-moi d'où viennent les marées."),
                (
                    (
                        "Les marées viennent surtout de la gravité de la Lune.",
                        "Les marées viennent surtout du vent du nord.",
                    ),
                    ("Le Soleil y contribue aussi, mais moins.", "Le Soleil n'y joue aucun rôle."),
                    (
                        "Sur la plupart des côtes, il y a deux marées hautes par jour.",
                        "Sur la plupart des côtes, il y a une marée haute par mois.",
                    ),
                ),
            ),
        ),
    ),
    "zh": Phrases(
        capital_prompts=("{x}的首都是哪里？{y}的首都呢？", "请告诉我{x}和{y}的首都。"),
        capital_statements=("{x}的首都是{c}。", "{c}是{x}的首都。"),
        countries=(
            ("法国", "巴黎", "里昂"),
            ("意大利", "罗马", "米兰"),
            ("德国", "柏林", "慕尼黑"),
            ("日本", "东京", "大阪"),
            ("埃及", "开罗", "亚历山大"),
            ("加拿大", "渥太华", "多伦多"),
            ("波兰", "华沙", "克拉科夫"),
            ("澳大利亚", "堪培拉", "悉尼"),
        ),
        sum_prompts=("{a}加{b}等于多少？", "请计算{a} + {b}，并验算结果。"),
        sum_statements=("{a} + {b} = {s}。", "{a}与{b}的和是{s}。"),
        check_statements=("验算：{s} - {b} = {a}。",),
        topics=(
            (
                ("为什么会有潮汐？", "请解释潮汐是怎样形成的。"),
                (
                    ("潮汐主要是由月球的引力引起的。", "潮汐主要是由北风引起的。"),
                    ("太阳也有影响，但比较小。", "太阳对潮汐完全没有影响。"),
                    ("大多数海岸每天有两次涨潮。", "大多数海岸每个月只有一次涨潮。"),
                ),
            ),
        ),
    ),
    "ja": Phrases(
        capital_prompts=("{x}の首都はどこですか？{y}の首都はどこですか？", "{x}と{y}の首都を教えてください。"),
        capital_statements=("{x}の首都は{c}です。", "{c}は{x}の首都です。"),
        countries=(
            ("フランス", "パリ", "リヨン"),
            ("イタリア", "ローマ", "ミラノ"),
            ("ドイツ", "ベルリン", "ミュンヘン"),
            ("スペイン", "マドリード", "バルセロナ"),
            ("エジプト", "カイロ", "アレクサンドリア"),
            ("カナダ", "オタワ", "トロント"),
            ("ポーランド", "ワルシャワ", "クラクフ"),
            ("オーストラリア", "キャンベラ", "シドニー"),
        ),
        sum_prompts=("{a}足す{b}はいくつですか？", "{a} + {b}を計算して、検算してください。"),
        sum_statements=("{a} + {b} = {s}です。", "{a}と{b}の和は{s}です。"),
        check_statements=("検算すると、{s} - {b} = {a}です。",),
        topics=(
            (
                ("なぜ潮の満ち引きがあるのですか？", "潮の満ち引きの仕組みを説明してください。"),
                (
                    ("潮の満ち引きは主に月の引力によって起こります。", "潮の満ち引きは主に北風によって起こります。"),
                    ("太陽も影響しますが、月ほどではありません。", "太陽はまったく影響しません。"),
                    ("多くの海岸では一日に二回満潮になります。", "多くの海岸では月に一回だけ満潮になります。"),
                ),
            ),
        ),
    ),
    "ru": Phrases(
        capital_prompts=(
            "Какой город является столицей {x}, а какой столицей {y}?",
            "Назовите, пожалуйста, столицы {x} и {y}.",
        ),
        capital_statements=("Столица {x} — {c}.", "{c} — столица {x}."),
        countries=(
            ("Франции", "Париж", "Лион"),
            ("Италии", "Рим", "Милан"),
            ("Германии", "Берлин", "Мюнхен"),
            ("Японии", "Токио", "Осака"),
            ("Египта", "Каир", "Александрия"),
            ("Канады", "Оттава", "Торонто"),
            ("Польши", "Варшава", "Краков"),
            ("Австралии", "Канберра", "Сидней"),
        ),
        sum_prompts=("Сколько будет {a} плюс {b}?", "Вычислите {a} + {b} и проверьте результат."),
        sum_statements=("{a} + {b} = {s}.", "Сумма чисел {a} и {b} равна {s}."),
        check_statements=("Проверка: {s} - {b} = {a}.",),
        topics=(
            (
                ("Почему бывают приливы и отливы?", "Объясните, отчего возникают приливы."),
                (
                    ("Приливы вызывает прежде всего притяжение Луны.", "Приливы вызывает прежде всего северный ветер."),
                    ("Солнце тоже влияет, но слабее.", "Солнце на них совсем не влияет."),
                    (
                        "На большинстве побережий прилив бывает дважды в день.",
                        "На большинстве побережий прилив бывает раз в месяц.",
                    ),
                ),
            ),
        ),
    ),
    "ar": Phrases(
        capital_prompts=("ما هي عاصمة {x} وما هي عاصمة {y}؟", "من فضلك اذكر عاصمة {x} وعاصمة {y}."),
        capital_statements=("عاصمة {x} هي {c}.", "{c} هي عاصمة {x}."),
        countries=(
            ("فرنسا", "باريس", "ليون"),
            ("إيطاليا", "روما", "ميلانو"),
            ("ألمانيا", "برلين", "ميونخ"),
            ("اليابان", "طوكيو", "أوساكا"),
            ("مصر", "القاهرة", "الإسكندرية"),
            ("كندا", "أوتاوا", "تورونتو"),
            ("بولندا", "وارسو", "كراكوف"),
            ("أستراليا", "كانبرا", "سيدني"),
        ),
        sum_prompts=("كم يساوي {a} زائد {b}؟", "احسب {a} + {b} وتحقق من النتيجة."),
        sum_statements=("{a} + {b} = {s}.", "مجموع {a} و {b} هو {s}."),
        check_statements=("للتحقق: {s} - {b} = {a}.",),
        topics=(
            (
                ("لماذا يحدث المد والجزر؟", "اشرح لي سبب المد والجزر."),
                (
                    ("يحدث المد والجزر أساساً بسبب جاذبية القمر.", "يحدث المد والجزر أساساً بسبب ريح الشمال."),
                    ("تؤثر الشمس أيضاً ولكن بدرجة أقل.", "لا تؤثر الشمس في ذلك أبداً."),
                    ("في معظم السواحل يحدث المد مرتين في اليوم.", "في معظم السواحل يحدث المد مرة واحدة في الشهر."),
                ),
            ),
        ),
    ),
}

COUNTRIES: tuple[tuple[str, str, str, str, str], ...] = tuple(
    (country, capital, city, continent, currency)
    for country, capital, city, continent, currency in (
        line.split("|")
        for line in """\
France|Paris|Lyon|Europe|the euro
Japan|Tokyo|Osaka|Asia|the yen
Australia|Canberra|Sydney|Oceania|the Australian dollar
Canada|Ottawa|Toronto|North America|the Canadian dollar
Brazil|Brasília|Rio de Janeiro|South America|the real
Switzerland|Bern|Zurich|Europe|the Swiss franc
Kenya|Nairobi|Mombasa|Africa|the Kenyan shilling
Morocco|Rabat|Casablanca|Africa|the dirham
Vietnam|Hanoi|Ho Chi Minh City|Asia|the dong
Poland|Warsaw|Kraków|Europe|the złoty
India|New Delhi|Mumbai|Asia|the Indian rupee
Pakistan|Islamabad|Karachi|Asia|the Pakistani rupee
China|Beijing|Shanghai|Asia|the renminbi
South Korea|Seoul|Busan|Asia|the won
Thailand|Bangkok|Chiang Mai|Asia|the baht
New Zealand|Wellington|Auckland|Oceania|the New Zealand dollar
Norway|Oslo|Bergen|Europe|the Norwegian krone
Sweden|Stockholm|Gothenburg|Europe|the Swedish krona
Denmark|Copenhagen|Aarhus|Europe|the Danish krone
Finland|Helsinki|Turku|Europe|the euro
Portugal|Lisbon|Porto|Europe|the euro
Spain|Madrid|Barcelona|Europe|the euro
Italy|Rome|Milan|Europe|the euro
Germany|Berlin|Munich|Europe|the euro
Austria|Vienna|Salzburg|Europe|the euro
Greece|Athens|Thessaloniki|Europe|the euro
Hungary|Budapest|Debrecen|Europe|the forint
Czechia|Prague|Brno|Europe|the koruna
Nigeria|Abuja|Lagos|Africa|the naira
Ghana|Accra|Kumasi|Africa|the cedi
Ethiopia|Addis Ababa|Gondar|Africa|the birr
Peru|Lima|Cusco|South America|the sol
Chile|Santiago|Valparaíso|South America|the Chilean peso
Colombia|Bogotá|Medellín|South America|the Colombian peso
Argentina|Buenos Aires|Córdoba|South America|the Argentine peso
Mexico|Mexico City|Guadalajara|North America|the Mexican peso
Jordan|Amman|Aqaba|Asia|the Jordanian dinar
Nepal|Kathmandu|Pokhara|Asia|the Nepalese rupee
Mongolia|Ulaanbaatar|Erdenet|Asia|the tögrög
Ukraine|Kyiv|Odesa|Europe|the hryvnia
Romania|Bucharest|Cluj-Napoca|Europe|the leu
Iceland|Reykjavík|Akureyri|Europe|the Icelandic króna
Ireland|Dublin|Cork|Europe|the euro
Uruguay|Montevideo|Salto|South America|the Uruguayan peso""".splitlines()
    )
)
"""(country, capital, a city that is not the capital, continent, currency)."""

WORDS: dict[str, dict[str, str]] = {
    language: dict(
        zip(
            (
                "bread",
                "cheese",
                "water",
                "house",
                "dog",
                "cat",
                "book",
                "milk",
                "tree",
                "fish",
                "night",
                "sun",
                "apple",
                "bridge",
                "winter",
                "key",
            ),
            words.split(),
            strict=True,
        )
    )
    for language, words in {
        "Spanish": "pan queso agua casa perro gato libro leche árbol pescado noche sol manzana puente invierno llave",
        "French": "pain fromage eau maison chien chat livre lait arbre poisson nuit soleil pomme pont hiver clé",
        "German": "Brot Käse Wasser Haus Hund Katze Buch Milch Baum Fisch Nacht Sonne Apfel Brücke Winter Schlüssel",
        "Italian": "pane formaggio acqua casa cane gatto libro latte albero pesce notte sole mela ponte inverno chiave",
    }.items()
}

EVENTS: tuple[tuple[int, str], ...] = (
    (1215, "the sealing of Magna Carta"),
    (1492, "Columbus's first voyage to the Americas"),
    (1687, "the publication of Newton's Principia"),
    (1776, "the American Declaration of Independence"),
    (1789, "the storming of the Bastille"),
    (1815, "the Battle of Waterloo"),
    (1859, "the publication of On the Origin of Species"),
    (1869, "the opening of the Suez Canal"),
    (1889, "the completion of the Eiffel Tower"),
    (1903, "the Wright brothers' first powered flight"),
    (1914, "the outbreak of the First World War"),
    (1928, "the discovery of penicillin"),
    (1945, "the founding of the United Nations"),
    (1953, "the first ascent of Mount Everest"),
    (1969, "the first crewed Moon landing"),
    (1989, "the fall of the Berlin Wall"),
    (2007, "the release of the first iPhone"),
)

UNITS: tuple[tuple[str, str, int], ...] = (
    ("kilometres", "metres", 1000),
    ("hours", "minutes", 60),
    ("weeks", "days", 7),
    ("kilograms", "grams", 1000),
    ("feet", "inches", 12),
    ("days", "hours", 24),
    ("metres", "centimetres", 100),
    ("minutes", "seconds", 60),
)

TOPICS: dict[str, tuple[tuple[str, str], ...]] = {
    "photosynthesis": (
        (
            "Plants use sunlight to turn carbon dioxide and water into sugar.",
            "Plants use moonlight to turn oxygen and salt into sugar.",
        ),
        ("The process releases oxygen as a by-product.", "The process releases helium as a by-product."),
        (
            "It happens in the chloroplasts, which contain the green pigment chlorophyll.",
            "It happens in the roots, which contain the red pigment haemoglobin.",
        ),
    ),
    "how vaccines work": (
        (
            "A vaccine shows the immune system a harmless piece or form of a germ.",
            "A vaccine kills every germ in the body directly, like bleach.",
        ),
        ("The body then makes antibodies and memory cells.", "The body then stops making antibodies."),
        (
            "When the real germ arrives later, the response is faster and stronger.",
            "When the real germ arrives later, nothing in the response is different.",
        ),
    ),
    "inflation": (
        ("Inflation is a general rise in prices over time.", "Inflation is a general fall in prices over time."),
        (
            "It means that the same amount of money buys less than before.",
            "It means that the same amount of money buys more than before.",
        ),
        (
            "Central banks often raise interest rates to slow it down.",
            "Central banks usually print more money to slow it down.",
        ),
    ),
    "why the sky is blue": (
        ("Sunlight is scattered by the molecules of the air.", "The sky simply mirrors the colour of the oceans."),
        (
            "Short wavelengths such as blue are scattered much more than red.",
            "Long wavelengths such as red are scattered much more than blue.",
        ),
        (
            "At sunset the light travels through more air, so more of the red remains.",
            "At sunset the sun itself cools down, so it turns red.",
        ),
    ),
    "what causes the seasons": (
        (
            "The seasons come from the tilt of the Earth's axis.",
            "The seasons come from the changing distance to the Sun.",
        ),
        (
            "When the northern half leans towards the Sun, it has summer.",
            "When the northern half leans away from the Sun, it has summer.",
        ),
        ("The southern half has winter at that time.", "The southern half has summer at the same time."),
    ),
    "how a rainbow forms": (
        (
            "Light is bent when it enters a raindrop, and each colour is bent by a different amount.",
            "Raindrops contain coloured dust that glows in the sun.",
        ),
        (
            "It is reflected at the back of the drop and leaves it again.",
            "It stays inside the drop until the rain is over.",
        ),
        ("You see a rainbow when the sun is behind you.", "You see a rainbow when you look straight at the sun."),
    ),
    "earthquakes": (
        (
            "The Earth's crust is made of plates that move slowly.",
            "The Earth's crust is one solid shell that never moves.",
        ),
        (
            "Stress builds up at the faults until the rock suddenly slips.",
            "Heat builds up in the clouds until lightning hits the rock.",
        ),
        ("The released energy travels as seismic waves.", "The released energy travels as radio waves."),
    ),
    "how the heart works": (
        ("The human heart has four chambers.", "The human heart has seven chambers."),
        ("The right side pumps blood to the lungs.", "The right side pumps blood to the stomach only."),
        ("The left side pumps oxygen-rich blood to the body.", "The left side pumps air to the muscles."),
    ),
    "fermentation": (
        ("Yeast turns sugar into alcohol and carbon dioxide.", "Yeast turns alcohol into sugar and oxygen."),
        ("In bread the gas makes the dough rise.", "In bread the salt alone makes the dough rise."),
        (
            "In yoghurt, bacteria turn milk sugar into lactic acid.",
            "In yoghurt, yeast turns milk protein into vinegar.",
        ),
    ),
    "compound interest": (
        (
            "Compound interest is interest on the principal and on earlier interest.",
            "Compound interest is interest on the principal only.",
        ),
        (
            "The amount after n years is P times (1 + r) to the power of n.",
            "The amount after n years is P plus r times n.",
        ),
        ("The longer the money stays, the faster it grows.", "The longer the money stays, the less it earns in total."),
    ),
    "binary search": (
        ("Binary search looks for a value in a sorted list.", "Binary search only works when the list is shuffled."),
        (
            "It compares the value with the middle element and drops half of the list.",
            "It compares the value with every element from left to right.",
        ),
        ("It needs about log2(n) steps.", "It needs about n squared steps."),
    ),
    "what DNS does": (
        (
            "DNS translates host names such as example.org into IP addresses.",
            "DNS encrypts the files on your hard disk.",
        ),
        (
            "Your computer asks a resolver, which asks other name servers if needed.",
            "Your computer asks the printer, which keeps all names.",
        ),
        ("Answers are cached for a while to save time.", "Answers are never cached by anyone."),
    ),
    "lunar eclipses": (
        (
            "In a lunar eclipse the Earth stands between the Sun and the Moon.",
            "In a lunar eclipse the Moon stands between the Earth and the Sun.",
        ),
        ("The Moon then passes through the Earth's shadow.", "The Moon then loses its own light for a night."),
        ("It can only happen at full moon.", "It can only happen at new moon."),
    ),
    "antibiotics": (
        ("Antibiotics kill bacteria or stop them from growing.", "Antibiotics kill viruses such as the flu."),
        ("They do not work against viruses.", "They work best against the common cold."),
        ("Using them carelessly helps resistant bacteria to spread.", "Using them every day keeps resistance away."),
    ),
    "hash tables": (
        ("A hash table stores values under keys.", "A hash table stores values in sorted order only."),
        ("A hash function maps each key to a slot.", "A random number maps each key to a new slot every time."),
        ("Looking up a key takes constant time on average.", "Looking up a key takes quadratic time on average."),
    ),
    "how bees make honey": (
        ("Bees collect nectar from flowers.", "Bees collect honey directly from the leaves of oak trees."),
        ("In the hive they pass it on and add enzymes.", "In the hive they mix it with sand."),
        (
            "Water evaporates until the honey is thick enough to keep.",
            "They add rain water until the honey is thin enough to keep.",
        ),
    ),
}

TIPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sleeping better": (
        (
            "Go to bed at the same time every day.",
            "Keep your bedroom cool and dark.",
            "Avoid screens in the last hour of the evening.",
            "Avoid caffeine after lunch.",
            "Get some daylight in the morning.",
        ),
        (
            "Drink a double espresso right before bed.",
            "Keep all the lights on during the night.",
            "Set an alarm for every hour of the night.",
        ),
    ),
    "saving money": (
        (
            "Write down what you spend for a month.",
            "Set up an automatic transfer to savings on payday.",
            "Cancel subscriptions that you do not use.",
            "Plan your meals before you shop.",
            "Wait a day before a large purchase.",
        ),
        (
            "Buy lottery tickets with your savings.",
            "Pay for everything with a high-interest credit card.",
            "Take out a loan to go shopping.",
        ),
    ),
    "learning a new language": (
        (
            "Practise a little every day.",
            "Learn the most frequent words first.",
            "Speak with native speakers as early as you can.",
            "Listen to podcasts at your level.",
            "Review vocabulary with spaced repetition.",
        ),
        (
            "Never speak until you are perfect.",
            "Memorise a whole dictionary in one weekend.",
            "Avoid hearing the language at all.",
        ),
    ),
    "preparing for a job interview": (
        (
            "Read about the company beforehand.",
            "Prepare examples of your past work.",
            "Practise common questions aloud.",
            "Arrive a few minutes early.",
            "Bring questions of your own.",
        ),
        (
            "Arrive half an hour late to look busy.",
            "Make up degrees that you do not have.",
            "Answer your phone during the interview.",
        ),
    ),
    "starting to run": (
        (
            "Start with short, slow runs.",
            "Alternate running with walking.",
            "Wear shoes that fit well.",
            "Rest at least one day between runs.",
            "Increase the distance gradually.",
        ),
        ("Run a marathon on the first day.", "Ignore pain and keep going.", "Never drink any water."),
    ),
    "writing a good CV": (
        (
            "Keep it to one or two pages.",
            "Put your most recent job first.",
            "Use numbers to show results.",
            "Adapt it to each position.",
            "Ask somebody to proofread it.",
        ),
        ("Use ten different fonts.", "Leave out your contact details.", "List every meal you have cooked."),
    ),
    "keeping houseplants alive": (
        (
            "Water only when the soil feels dry.",
            "Choose pots with drainage holes.",
            "Put each plant where its light needs are met.",
            "Wipe dust off the leaves.",
            "Feed them lightly in the growing season.",
        ),
        ("Water them with salt water.", "Keep them in a closed cupboard.", "Pour hot tea on the leaves every day."),
    ),
    "staying safe online": (
        (
            "Use a different password for every account.",
            "Turn on two-factor authentication.",
            "Install updates soon after they appear.",
            "Check the sender before opening attachments.",
            "Back up important files.",
        ),
        (
            "Use 123456 as the password everywhere.",
            "Send your bank PIN to anyone who asks by email.",
            "Switch off all updates.",
        ),
    ),
    "giving a presentation": (
        (
            "Know the one message that you want to leave.",
            "Rehearse with a timer.",
            "Use few words on each slide.",
            "Look at the audience.",
            "Prepare for likely questions.",
        ),
        (
            "Read every slide aloud with your back to the room.",
            "Fit two hundred words on each slide.",
            "Speak as fast as you possibly can.",
        ),
    ),
    "a long train journey": (
        (
            "Book a seat by the window.",
            "Pack some food and water.",
            "Download films before you leave.",
            "Bring a light jacket.",
            "Keep your ticket within reach.",
        ),
        ("Leave your passport at home.", "Arrive after the train has left.", "Put all your luggage in the aisle."),
    ),
}

CODE: tuple[tuple[str, str, str, str, str], ...] = (
    (
        "returns the sum of the even numbers in a list",
        "def sum_even(numbers):\n    return sum(n for n in numbers if n % 2 == 0)",
        "def sum_even(numbers):\n    return sum(n for n in numbers if n % 2 == 1)",
        "It keeps the numbers that are divisible by two and adds them up.",
        "It multiplies the numbers that are divisible by three.",
    ),
    (
        "reverses a string",
        "def reverse(text):\n    return text[::-1]",
        "def reverse(text):\n    return text[1:]",
        "The slice with step -1 walks through the string backwards.",
        "The slice sorts the letters by the alphabet.",
    ),
    (
        "checks whether a word is a palindrome",
        ("def is_palindrome(word):\n    word = word.lower()\n    return word == word[::-1]"),
        ("def is_palindrome(word):\n    word = word.lower()\n    return word != word[::-1]"),
        "A palindrome reads the same in both directions.",
        "A palindrome is a word in which no letter occurs twice.",
    ),
    (
        "computes the factorial of n",
        ("def factorial(n):\n    result = 1\n    for i in range(2, n + 1):\n        result *= i\n    return result"),
        ("def factorial(n):\n    result = 0\n    for i in range(2, n):\n        result *= i\n    return result"),
        "The loop multiplies all whole numbers up to n.",
        "The loop adds all even numbers up to n.",
    ),
    (
        "counts the vowels in a string",
        "def count_vowels(text):\n    return sum(c in 'aeiou' for c in text.lower())",
        "def count_vowels(text):\n    return sum(c not in 'aeiou' for c in text.lower())",
        "Lower-casing first makes it work for capitals too.",
        "Lower-casing first removes all the spaces.",
    ),
    (
        "finds the largest number in a list without using max",
        (
            "def largest(numbers):\n"
            "    best = numbers[0]\n"
            "    for n in numbers:\n"
            "        if n > best:\n"
            "            best = n\n"
            "    return best"
        ),
        (
            "def largest(numbers):\n"
            "    best = numbers[0]\n"
            "    for n in numbers:\n"
            "        if n < best:\n"
            "            best = n\n"
            "    return best"
        ),
        "The variable best always holds the largest value seen so far.",
        "The variable best always holds the length of the list.",
    ),
    (
        "removes duplicates from a list and keeps the order",
        "def unique(items):\n    return list(dict.fromkeys(items))",
        "def unique(items):\n    return items + items",
        "Dictionaries keep insertion order, so the first occurrence stays.",
        "Dictionaries shuffle their keys, so the last occurrence stays.",
    ),
    (
        "converts Celsius to Fahrenheit",
        "def to_fahrenheit(c):\n    return c * 9 / 5 + 32",
        "def to_fahrenheit(c):\n    return c * 5 / 9 + 32",
        "At 100 degrees Celsius it returns 212.",
        "At 100 degrees Celsius it returns 180.",
    ),
)
"""(what the function does, correct code, code with a bug, a true remark, a false remark)."""

CODE_PROMPTS = (
    "Write a Python function that {what}.",
    "In Python, how do I write a function that {what}?",
    "I need Python code: a function that {what}. Please use a code block.",
    "Show me a short Python function that {what} and explain it.",
)
TOPIC_PROMPTS = (
    "Explain {what} in a few sentences.",
    "Can you explain {what} to a beginner?",
    "What should I know about {what}?",
    "I have an exam tomorrow. Please summarise {what}.",
    "Tell me about {what}, and keep it simple.",
)
TIP_PROMPTS = (
    "Give me {n} tips for {what}, as a list.",
    "List {n} pieces of advice on {what}.",
    "What are {n} good ideas for {what}? Please answer with a list.",
    "I need {n} bullet points about {what}.",
)
CAPITAL_PROMPTS = (
    "What is the capital of {x}, on which continent is it, and what is its currency?",
    "Tell me the capital, the continent and the currency of {x}.",
    "I'm planning a quiz about {x}: capital, continent and currency, please.",
    "For my geography homework: capital, continent and currency of {x}?",
)
PROMPT_LEADS = ("", "", "", "", "Hi! ", "Quick question: ", "Hello, ", "hey, ", "My teacher asked this. ")
FOLLOW_UP_LEADS = ("Thanks! ", "And now: ", "Okay, next one. ", "One more thing: ")
PEOPLE = ("Mia", "Omar", "Lena", "Kofi", "Yuki", "Pablo", "Ana", "Tom", "Priya", "Igor")
ITEMS = ("notebooks", "apples", "tickets", "candles", "mugs", "pens", "plants", "sandwiches")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
ROLES = ("manager", "teacher", "dentist", "landlord", "colleague", "coach")
