//! The texts that an int8 model is judged by: of every length, from one word to several hundred; prose, questions, code,
//! records and noise; many scripts. Changing one makes every verdict be found anew.

/// The list. Models cut what is too long for them.
pub const TEXTS: [&str; 44] = [
    // Short: what people type into a search field.
    "hello",
    "a",
    "red wine stain carpet",
    "How do I renew a passport?",
    "capital of Mongolia",
    "The contract was signed yesterday.",
    "no",
    "not bad at all",
    "cheap flights Lisbon to Oslo, two adults, second week of May",
    "WHY IS MY SCREEN UPSIDE DOWN",
    // Statements that differ in one word.
    "The bank raised its interest rate by half a point.",
    "The bank lowered its interest rate by half a point.",
    "The bank of the river was flooded by half a metre.",
    // Records, numbers, identifiers.
    "1234567890",
    "3.14159 2.71828 1.41421 1.61803 -273.15 6.02e23 1e-9 0x7fff_ffff",
    "2024-02-29T23:59:60Z GET /api/v2/items?limit=50&offset=100 200 1.7ms \"Mozilla/5.0 (X11; Linux x86_64)\"",
    "https://example.org/articles/2019/07/how-bridges-are-built?ref=newsletter#comments",
    "name,quantity,price\nbolts M6x20,400,0.04\nwashers,1000,0.01\nhinge (brass),12,3.75\ntotal,,71.00",
    "{\"id\": 81723, \"status\": \"shipped\", \"lines\": [{\"sku\": \"AB-9\", \"n\": 2}, {\"sku\": \"ZK-1\", \"n\": 1}], \"gift\": false}",
    "ACGTTGCAACGTTTAGGCATCGATCGGCTAAGCTTAACGGTACCTTGA",
    // Code.
    "fn main() { let total: u64 = (1..=10).filter(|n| n % 2 == 0).map(|n| n * n).sum(); report(total); }",
    "def binary_search(items, wanted):\n    low, high = 0, len(items)\n    while low < high:\n        middle = (low + high) // 2\n        \
     if items[middle] < wanted:\n            low = middle + 1\n        else:\n            high = middle\n    return low",
    "SELECT c.name, COUNT(*) AS orders FROM customers c JOIN orders o ON o.customer_id = c.id WHERE o.placed >= '2023-01-01' \
     GROUP BY c.name HAVING COUNT(*) > 5 ORDER BY orders DESC LIMIT 10;",
    "for (const [key, value] of Object.entries(settings ?? {})) { if (value === undefined) delete settings[key]; }",
    "error[E0382]: borrow of moved value: `names`\n --> src/lib.rs:14:20\n  |\n9 |     let names = vec![String::new()];\n  |         ----- \
     move occurs because `names` has type `Vec<String>`, which does not implement the `Copy` trait",
    // Other languages and scripts.
    "¿Dónde puedo comprar un billete para el tren de las ocho a Sevilla?",
    "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung aller staatlichen Gewalt.",
    "Le petit chat dort sur le rebord de la fenêtre pendant que la pluie tombe doucement dans la cour.",
    "Не спеши: тот, кто идёт медленно, приходит раньше того, кто бежит и падает.",
    "今天下午三点我们在图书馆门口见面,别忘了把上次借的书带来还。",
    "吾輩は猫である。名前はまだ無い。どこで生れたか頓と見當がつかぬ。",
    "내일 아침에 비가 오면 우리는 산에 가지 않고 집에서 영화를 볼 거예요.",
    "كيف أستطيع الوصول إلى محطة القطار من هنا؟ هل هي بعيدة؟",
    "मुझे कल सुबह जल्दी उठना है क्योंकि मेरी परीक्षा नौ बजे शुरू होती है।",
    "Η θάλασσα ήταν ήρεμη και το καράβι έφυγε πριν από την αυγή. שלום, מה שלומך היום? สวัสดีตอนเช้า วันนี้อากาศดีมาก",
    "🙂🙃 😀 👩‍👩‍👧 ✈️ → 🏝️ !!! ¯\\_(ツ)_/¯ ½ ≠ ⅓ ∑ᵢ xᵢ² ≤ ∞",
    // Paragraphs.
    "Photosynthesis turns light into chemical energy. In the leaves of green plants, chlorophyll absorbs mostly red and blue \
     light; the energy splits water into oxygen, which escapes, and hydrogen, which is bound to carbon dioxide from the air. \
     What comes out is sugar, and from sugar nearly everything that living things are made of.",
    "Preheat the oven to 180 degrees. Beat 120 g of soft butter with 150 g of sugar until it is pale, add two eggs one after \
     the other, then 200 g of flour, a teaspoon of baking powder and a pinch of salt. Fold in two grated apples and a handful \
     of walnuts. Bake for 45 minutes; a wooden skewer should come out clean. Leave it in the tin for ten minutes before you \
     turn it out.",
    "The tenant shall return the premises at the end of the term in the condition in which they were received, ordinary wear \
     excepted. Alterations made without the landlord's written consent shall be removed at the tenant's expense. Should the \
     tenant fail to vacate in time, the landlord may claim, for every day of delay, one thirtieth of the monthly rent and any \
     further damage that is proved. This clause survives termination of the agreement.",
    "Patient, 58, presents with intermittent chest pain on exertion for three weeks, relieved by rest, no radiation. History of \
     hypertension, treated with lisinopril 10 mg daily; former smoker, 20 pack-years. Blood pressure 148/92, pulse 76 and \
     regular, lungs clear, no oedema. ECG: sinus rhythm, no ST changes. Troponin negative twice. Plan: stress test, start \
     aspirin 81 mg and atorvastatin 40 mg, review in one week or at once if pain occurs at rest.",
    "I bought this kettle in March and it worked well until last week. Now it switches itself off before the water boils, and \
     the lid does not close properly any more. I have descaled it twice, as the manual says. The shop tells me to write to the \
     manufacturer, the manufacturer tells me to go to the shop. I do not want a voucher; I want a kettle that boils water. \
     Two stars, because it is at least pretty.",
    "buffalo buffalo buffalo buffalo buffalo buffalo buffalo buffalo the the the the the the the the the the the the, , , , . . .",
    // Long: several hundred tokens, beyond what small models read.
    "When the lighthouse was built, the village had forty houses, a church without a tower and a harbour that dried out at low \
     water. Stone came from the quarry on the other side of the bay, in boats that could only land at spring tide, so the walls \
     grew in steps, two courses every fortnight, and stood still in between. The engineer, a thin man who had learned his trade \
     on canals and distrusted the sea, lodged with the widow at the end of the quay. Every evening he wrote down how high the \
     water had come, which way the wind had turned and what the masons had drunk. He left eleven volumes. Nobody read them for \
     a hundred years, until a student who was looking for something else found in them the best record of tides and storms on \
     that coast. From the engineer's figures she could show that the level of the sea had risen by a hand's breadth since his \
     time, that the great gale which the village still spoke of had been no stronger than a dozen others, and that it had done \
     such damage only because it came at the hour of the highest tide of the year. She also found, between two tables, a pressed \
     flower and a line in another hand. The tower is still there. The lamp is electric now, and nobody lives on the rock; twice \
     a year a boat brings two people with a toolbox, who change what needs to be changed, look out over the bay for a while and \
     go home before the ebb. In the village there are two hundred houses, of which most are empty in winter, and the widow's \
     house is a museum where the eleven volumes lie under glass, opened at the page with the flower.",
    "A database index is a second copy of some columns, kept in an order that makes searching quick. Without one, a query that \
     asks for a single row has to read the whole table; with one, it walks down a tree of a few levels and reads a handful of \
     pages. Nothing is free, though: each insert, update and delete has to maintain every index of its table, indexes take \
     memory that the data itself could have used, and a planner that has too many to choose from sometimes chooses badly. A few \
     rules of thumb help. Index what you filter and join by, not what you merely display. Put the column that is compared with \
     = before the one that is compared with <. An index on (a, b) also serves queries on a alone, but not those on b alone. A \
     column with two values is rarely worth an index unless one of the values is rare and is the one you look for; then a \
     partial index, WHERE status = 'failed', is small and quick. If a query needs nothing but the index's own columns, the table \
     is not touched at all. Measure before and after: EXPLAIN (ANALYZE, BUFFERS) tells which plan was taken, how many rows were \
     expected and how many there were; where the two differ by a factor of a hundred, the statistics are stale or two columns \
     depend on each other, and no index will mend that. And look, from time to time, for indexes that nobody has used since the \
     last restart: dropping one makes every write faster, and it can be built again, CONCURRENTLY, on a quiet evening.",
];
