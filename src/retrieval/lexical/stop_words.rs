//! The most common words of each language, in lowercase. Pure.
//!
//! They show which language a text is in, and carry no weight in a query.

use super::language::Language;

/// Stop words of each language, separated by spaces. `ς` is written as `σ`, like in all analyzed words.
pub(super) const STOP_WORDS: [(Language, &str); 18] = [
    (
        Language::Arabic,
        "في من على إلى الى عن مع هذا هذه ذلك تلك التي الذي الذين هو هي هم هن أن ان إن أو او ثم لا ما لم لن قد كان كانت يكون تكون \
         كل بعد قبل بين حتى عند غير كما كيف ليس متى أين اين هل أي اي إذا اذا لكن و أنا نحن أنت به بها له لها فيه فيها منه منها \
         عليه عليها وقد ولا وفي ومن يتم تم حيث منذ خلال ضد لأن ولم وهو وهي أيضا هناك هنا",
    ),
    (
        Language::Danish,
        "og i at det er en til på de af med for som ikke et den har der om jeg vi du han hun men fra var kan vil skal eller \
         så hvis når nu over da efter ud sig op hvad hvor hvordan hvem hvorfor deres dem os vores min din sin mig dig ham hende \
         dette denne disse have havde være været blev bliver blevet meget nogle noget nogen alle også kun ved under uden mellem \
         inden mod gennem bare mange ind her end efter må kunne ville skulle",
    ),
    (
        Language::Dutch,
        "de het een en van in is op te dat die voor met zijn er aan niet ook als om bij of door naar uit maar over dan nog wordt \
         worden werd heeft hebben had kan kunnen moet moeten zal zullen zou was waren ben bent we wij ze zij hij ik je jij u \
         mijn jouw uw ons onze hun haar hem deze dit daar hier hoe wat wie waar wanneer waarom welke geen wel meer veel tot \
         tegen onder tussen zonder binnen na al alle alles toen zo want omdat mij men",
    ),
    (
        Language::English,
        "a about after all also am an and any are as at be because been before being between both but by can could did do does \
         doing during each few for from further had has have having he her here hers him his how i if in into is it its itself \
         just may me might more most must my no nor not of off on once only or other our out over own same shall she should so \
         some such than that the their them then there these they this those through to too under until up upon us very was we \
         were what when where which while who whom whose why will with within without would you your yours i'm i've don't \
         doesn't didn't isn't aren't wasn't weren't can't cannot couldn't won't wouldn't shouldn't it's that's there's what's",
    ),
    (
        Language::Finnish,
        "ja on ei se että hän oli joka mutta ovat olla kun niin myös kuin tai jos sen siitä nyt vain mitä mikä kuka missä milloin \
         miksi miten tämä tämän tätä nämä ne niiden niitä minä sinä me te he minun sinun hänen meidän teidän heidän joka jonka \
         jossa jotka joita en et emme ette eivät olen olet olemme olette olisi oli olivat ollut voi voivat pitää täytyy koska \
         sekä eli kanssa ennen jälkeen ilman yli ali sitä siinä sillä kaikki paljon hyvin vielä aina sitten",
    ),
    (
        Language::French,
        "le la les de des du un une et à au aux en dans est sont que qui quoi dont où pour par sur pas ne ni plus avec ce cet \
         cette ces il elle ils elles on nous vous je tu se sa son ses leur leurs mon ma mes ton ta tes notre nos votre vos mais \
         ou donc car si comme été être avoir a ont avait était sera fait peut doit sans sous entre vers chez depuis après avant \
         pendant quand comment pourquoi quel quelle quels quelles aussi très tout tous toute toutes même y lui moi l d qu c n s j m",
    ),
    (
        Language::German,
        "der die das den dem des ein eine einer eines einem einen und oder aber in im ins an am auf aus bei beim mit nach von vom \
         vor zu zum zur für über unter durch gegen ohne um bis ist sind war waren wird werden wurde wurden worden hat haben hatte \
         hatten sein seine seinen seiner ihr ihre ihren ihrer ihm ihn er sie es ich du wir mir mich dir dich uns euch nicht kein \
         keine auch nur noch schon sehr so wie was wer wo wann warum welche welcher welches dass daß wenn weil als ob da dann \
         hier dort dieser diese dieses diesem diesen jeder jede jedes alle kann können muss müssen soll sollen sich man mehr \
         zwischen innerhalb",
    ),
    (
        Language::Greek,
        "και το να του η της με που την από για στο είναι τα των σε ο οι τον ότι στην τη μια θα στη δεν τισ τουσ αλλά ένα στον \
         μου σασ μασ αν ή κατά ωσ μετά ήταν αυτό αυτή αυτά αυτοί αυτόσ όπωσ πριν όχι μόνο πολύ τι πωσ πού πότε γιατί ποιοσ ποια \
         ποιο ένασ μία στισ στουσ στα έχει έχουν εγώ εσύ εμείσ εσείσ τοσ μέσα προσ χωρίσ μεταξύ κάθε όλα όλοι επίσησ εκεί εδώ",
    ),
    (
        Language::Hungarian,
        "a az és hogy nem is egy ez azt ezt de ha meg csak van volt mint már még el fel ki le be vagy lesz lehet kell sem aki ami \
         amely amelyek akik amit mert én te ő mi ti ők ezek azok után előtt között alatt felett mellett nélkül szerint minden \
         nagyon most majd itt ott hol hová mikor miért hogyan melyik milyen ki mit vannak voltak lenne lett volna azonban illetve \
         illetőleg valamint pedig utána azzal ezzel arra erre annak ennek abban ebben",
    ),
    (
        Language::Italian,
        "il lo la i gli le un uno una di a da in con su per tra fra del dello della dei degli delle al allo alla ai agli alle dal \
         dallo dalla dai dagli dalle nel nello nella nei negli nelle sul sullo sulla sui sugli sulle e è ed o ma se che chi cui \
         non come dove quando perché quale quali quanto cosa questo questa questi queste quello quella quelli quelle sono sei \
         siamo era erano essere stato stata ha hanno ho avere aveva io tu lui lei noi voi loro mio mia tuo tua suo sua nostro \
         vostro si ci vi ne anche più molto tutto tutti tutte già ancora solo dopo prima senza entro viene l d dell all dall nell sull",
    ),
    (
        Language::Norwegian,
        "og i at det er en til på de av med for som ikke et den har der om jeg vi du han hun men fra var kan vil skal eller så \
         hvis når nå over da etter ut seg opp hva hvor hvordan hvem hvorfor deres dem oss vår min din sin meg deg ham henne dette \
         denne disse ha hadde være vært ble blir blitt mye noen noe alle også bare ved under uten mellom innen mot gjennom mange \
         inn her enn etter må kunne ville skulle selv ingen dere eg ikkje ein",
    ),
    (
        Language::Portuguese,
        "o a os as um uma uns umas de do da dos das em no na nos nas por pelo pela pelos pelas para com sem sob sobre entre até \
         após ante contra desde e ou mas se que quem qual quais quando onde como porque porquê não nem sim mais menos muito muita \
         já ainda também só é são foi foram era eram ser sido está estão estava estar tem têm tinha ter há eu tu ele ela nós vós \
         eles elles elas você vocês me te lhe lhes meu minha teu tua seu sua seus suas nosso nossa este esta estes estas esse essa \
         isso isto aquele aquela aquilo ao aos à às num numa dele dela depois antes",
    ),
    (
        Language::Romanian,
        "și şi în de la a al ai ale cu pe pentru din că ca nu este sunt era erau fi fost va vor o un unei unui unor care ce cine \
         unde când cum cât sau dar iar dacă mai prin după până între fără spre sub peste despre către se să sa si-a îi îl le lor \
         lui ei el ea noi voi eu tu ele acest această aceste acestea acesta acestui acela aceea are au am ați aţi avea avut fie \
         foarte tot toate toți doar numai astfel atunci aici acolo nici nimic",
    ),
    (
        Language::Russian,
        "и в во не что он на я с со как а то все она так его но да ты к у же вы за бы по только ее мне было вот от меня еще нет о \
         из ему теперь когда даже ну ли если уже или ни быть был него до вас нибудь вам ведь там потом себя ничего ей может они \
         тут где есть надо ней для мы тебя их чем была сам чтоб без будто чего раз тоже себе под будет кто этот того потому этого \
         какой этом эти это при об после над через более между была были который которая которые которых также",
    ),
    (
        Language::Spanish,
        "el la los las un una unos unas de del a al en y e o u con por para sin sobre entre hasta desde hacia según tras que qué \
         quién quien quienes cuál cual cuando cuándo donde dónde como cómo porque pero si sí no ni más menos muy mucho mucha ya \
         aún también sólo solo es son fue fueron era eran ser sido está están estaba estar ha han había haber hay tiene tienen \
         yo tú él ella nosotros vosotros ellos ellas usted ustedes me te se le les lo nos su sus mi mis tu tus nuestro nuestra \
         este esta estos estas ese esa eso esto aquel aquella todo toda todos todas otro otra después antes durante",
    ),
    (
        Language::Swedish,
        "och i att det som en på är av för med den till inte har de ett om jag vi du han hon men från var kan vill ska skall eller \
         så när nu över då efter ut sig upp vad hur vem varför deras dem oss vår min din sin mig dig honom henne detta denna dessa \
         hade vara varit blev blir blivit mycket några något någon alla också bara vid under utan mellan inom mot genom många in \
         här än må kunde ville skulle själv ingen inga ni er där hos samt eftersom finns",
    ),
    (
        Language::Tamil,
        "ஒரு என்று மற்றும் இந்த இது என்ற கொண்டு என்பது பல ஆகும் அல்லது அவர் நான் உள்ள அந்த இவர் என முதல் என்ன இருந்து சில என் போன்ற \
         வேண்டும் வந்து இதன் அது அவன் தான் பலரும் என்னும் மேலும் பின்னர் கொண்ட இருக்கும் தனது உள்ளது போது என்றும் அதன் தன் பிறகு அவர்கள் \
         வரை அவள் நீ ஆகிய இருந்தது உள்ளன வந்த இருந்த மிகவும் இங்கு மீது ஓர் இவை இந்தக் பற்றி வரும் வேறு இரு இதில் போல் இப்போது அவரது மட்டும் \
         இந்தப் எனும் மேல் பின் சேர்ந்த ஆகியோர் எனக்கு இன்னும் அந்தப் அன்று ஒரே மிக அங்கு பல்வேறு விட்டு பெரும் அதை பற்றிய உன் அதிக அந்தக் \
         பேர் இதனால் அவை அதே ஏன் முறை யார் என்பதை எல்லாம் மட்டுமே இங்கே அங்கே இடம் இடத்தில் அதில் எப்படி எங்கே கூறினார்",
    ),
    (
        Language::Turkish,
        "ve bir bu da de için ile çok daha ne o ama gibi kadar olan olarak var yok mi mı mu mü ki ben sen biz siz onlar şu her en \
         ya veya ise değil sonra önce olduğu olduğunu olur oldu hem hiç bütün tüm bazı bunu bunun buna şey nasıl neden niçin nerede \
         kim hangi kaç zaman eğer çünkü ancak fakat yani üzere göre karşı doğru diye sadece yalnız içinde arasında tarafından onun \
         onu ona benim senin bizim sizin kendi diğer aynı böyle şöyle ayrıca",
    ),
];
