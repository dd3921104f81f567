"""English words that mark their class by themselves, and common ones that no ending gives away.

Written for this tagger: a word stands where it is used most. Public, and the same for every text.
"""

from __future__ import annotations

from typing import Final

DETERMINERS: Final = frozenset(
    """a an the this that these those each every either neither some any no all both half such what which
    whose another many much few several enough""".split()
)
PRONOUNS: Final = frozenset(
    """i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it
    its itself we us our ours ourselves they them their theirs themselves who whom whoever someone
    somebody something anyone anybody anything everyone everybody everything nobody nothing none one
    ones there""".split()
)
PREPOSITIONS: Final = frozenset(
    """of in on at by for with from to into onto about above below under over between among through during
    before after against without within across behind beyond near off out up down since until till
    toward towards upon per via like despite except inside outside along around than as""".split()
)
CONJUNCTIONS: Final = frozenset("and or but nor so yet if because although though while whereas unless whether".split())
AUXILIARIES: Final = frozenset(
    """am is are was were be been being do does did have has had having will would shall should can could
    may might must ought cannot ain isn aren wasn weren don doesn didn haven hasn hadn won wouldn
    shouldn couldn ll ve re""".split()
)
ADVERBS: Final = frozenset(
    """not never always often sometimes usually again almost already also away back even ever far fast hard
    here how however just later maybe more most now once only perhaps quite rather really seldom soon
    still then thus today together tomorrow tonight too twice very well when where why yesterday less
    least ago else instead anyway""".split()
)
ADJECTIVES: Final = frozenset(
    """bad best better big black blue brown certain cheap clean clear cold common cool cruel dark dead dear
    deep different dirty dry dull easy empty entire evil fair false fat fine first flat fresh full funny
    good gray great green happy heavy high hot huge ill large last late lazy light little long loud low
    mad main major mean minor modern narrow new next nice old open own pink poor pretty pure quick quiet
    rare raw real red rich right rough round sad safe same second sharp short sick silly simple slow
    small smart smooth soft sorry sour strange strong stupid sure sweet tall thick thin third tiny tired
    tough true ugly warm weak weird wet white whole wide wild wise worse worst wrong yellow young""".split()
)
VERBS: Final = frozenset(
    """accept add agree allow appear apply argue arrive ask avoid become beg began begin begun believe
    belong blame bought bring broke brought build built buy call came care carry catch caught choose
    chose climb come consider continue cook cost create cry cut dare decide deny depend destroy die
    discover draw drank drew drink drive drove eat ate earn enjoy enter exist expect explain fail fall
    feel fell felt fight fill find finish fit flew fly follow forget forgot forgive fought found gave
    get give go goes gone got grew grow guess hang happen hate hear heard held help hide hit hold hope
    hurt imagine improve include join keep kept kill knew know laid laugh lay lead learn leave led left
    lend let lie listen live lose lost love made make marry mean meant meet met miss move need obey
    offer owe paid pay perform persuade play pray prefer prepare pretend protect prove provide pull push
    put quit ran reach read realize receive refuse remain remember remove repeat require ride ring rise
    run said sang sat save saw say see seem seen sell send sent serve set shake shoot shut sing sit
    slept sleep smile sold solve sought speak spend spent spoke stand start stay steal stood stop suffer
    suggest suppose swim take taken taught teach tear tell thank think thought threw throw told took
    touch travel tried try turn understand use wait wake walk want warn wash watch wear went win wish
    wonder won wore work worry write wrote""".split()
)
NUMBERS: Final = frozenset(
    """zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand
    million billion dozen""".split()
)
