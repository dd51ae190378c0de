"""The words of the synthetic clinic notes: departments, hospitals and how each hospital writes.

Pure data for :mod:`lorica.simulations.examples.clinic_notes`, all of it written by us. Phrases are
separated by semicolons; ``{age}``, ``{sex}``, ``{he}``, ``{his}``, ``{side}`` and ``{n}`` are
filled in per note. Within a hospital the findings share one grammar, so that any two can stand
side by side: noun phrases at Northgate and Tarnwell, predicates ("wheezes at night") at Larkfield
and Wexcombe. Wexcombe writes British English. Any change here changes the data set, whose hash
is pinned in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

DEPARTMENTS = (
    "cardiology",
    "respiratory medicine",
    "gastroenterology",
    "neurology",
    "orthopedics",
    "dermatology",
    "urology",
    "mental health",
)
"""The labels."""

NEIGHBORS: Mapping[str, tuple[str, ...]] = {
    "cardiology": ("respiratory medicine", "gastroenterology"),
    "respiratory medicine": ("cardiology", "gastroenterology"),
    "gastroenterology": ("urology", "cardiology"),
    "neurology": ("mental health", "orthopedics"),
    "orthopedics": ("neurology", "dermatology"),
    "dermatology": ("orthopedics", "respiratory medicine"),
    "urology": ("gastroenterology", "orthopedics"),
    "mental health": ("neurology", "cardiology"),
}
"""Departments to which a patient is triaged by mistake."""

SHARED_BY: Mapping[str, tuple[str, ...]] = {
    "chest": ("cardiology", "respiratory medicine", "gastroenterology", "mental health"),
    "breath": ("cardiology", "respiratory medicine", "mental health"),
    "heartbeat": ("cardiology", "mental health"),
    "collapse": ("cardiology", "neurology"),
    "tingling": ("neurology", "orthopedics", "mental health"),
    "weakness": ("neurology", "orthopedics"),
    "back": ("orthopedics", "urology"),
    "belly": ("gastroenterology", "urology"),
    "headache": ("neurology", "mental health"),
    "sleep": ("mental health", "respiratory medicine", "urology"),
    "leg": ("cardiology", "orthopedics", "dermatology"),
    "cough": ("respiratory medicine", "gastroenterology", "cardiology"),
    "weight": ("gastroenterology", "mental health", "respiratory medicine"),
    "redness": ("orthopedics", "dermatology"),
    "itch": ("dermatology", "gastroenterology"),
    "numb patch": ("dermatology", "neurology"),
}
"""Symptoms that several departments see."""


@cache
def phrases(text: str) -> tuple[str, ...]:
    """The semicolon-separated phrases of ``text``, white space normalized."""
    return tuple(" ".join(part.split()) for part in text.split(";") if part.strip())


@dataclass(frozen=True)
class Hospital:
    """One hospital: its size and label mix, and its way of writing.

    ``mix`` are the departments' relative frequencies among the patients, in percent, in the
    order of :data:`DEPARTMENTS`. All other texts are semicolon-separated phrases.
    """

    name: str
    prefix: str
    patients: int
    mix: tuple[int, ...]
    ages: tuple[int, int]
    sexes: tuple[tuple[str, ...], tuple[str, ...]]
    """The words for (male, female) patients that ``{sex}`` may become."""
    sides: tuple[str, str]
    first: str
    """Openings of a first note."""
    again: str
    """Openings of a later note of the same patient."""
    joiners: tuple[str, ...]
    since: str
    general: str
    """Symptoms that say nothing about the department."""
    history: str
    """Distractors: old diagnoses, family, medication."""
    clear: str
    """What speaks against each department, in the order of :data:`DEPARTMENTS`."""
    closings: str
    shared: Mapping[str, str]
    """Phrases per symptom of :data:`SHARED_BY`."""
    clues: Mapping[str, str]
    """Phrases that point at one department."""


NORTHGATE = Hospital(
    name="Northgate General",
    prefix="NG",
    patients=370,
    mix=(23, 17, 18, 10, 13, 3, 14, 2),
    ages=(19, 91),
    sexes=(("M",), ("F",)),
    sides=("L", "R"),
    first="""{age}{sex} c/o; {age}{sex},; Pt {age}{sex} w/; New pt {age}{sex}:; Ref by PCP,
        {age}{sex},""",
    again="F/u {age}{sex}:; {age}{sex} back w/; Rtn visit {age}{sex},; {age}{sex} again, still",
    joiners=(", ", " + ", " & ", "; ", ", also "),
    since="x{n}d; x{n}wk; {n}/12 hx; on/off {n}mo; worse x{n}d",
    general="""fatigue; low-grade temp; dizzy at times; diffuse aches; off food; sweats; malaise;
        gen weakness; mild pain 3/10; pain 6/10, constant; nausea; not self per spouse; feels run
        down; T 38.1""",
    history="""PMH asthma; hx HTN, on meds; T2DM, diet ctrl; FHx MI (father); ex-smoker; hx
        migraine; s/p appy {n}y ago; hx eczema as child; old knee scope; on SSRI x{n}y; PMH GERD,
        on PPI; hx kidney stone {n}y ago; NKDA; hx depression, stable; lap chole {n}y ago; OA both
        knees; on statin; on warfarin""",
    clear="""no CP, no edema; chest clear, no cough; abdo soft NT; neuro grossly intact; full ROM
        all joints; no rash; no urinary sx; mood ok""",
    closings="""labs sent; rpt vitals in 1h; dw senior, agree; rtc {n}wk; home w/ advice; pls see &
        advise; ref sent; stable, wait ok; meds reconciled; d/w family; await bed""",
    shared={
        "chest": "CP, vague; chest tightness on/off; central chest discomfort",
        "breath": "SOB; SOBOE; can't get full breath",
        "heartbeat": "palps; HR 118 at triage",
        "collapse": "collapse ?cause; LOC <1 min, witnessed",
        "tingling": "paresth both hands; tingling {side} fingers",
        "weakness": "weak {side} leg; grip weak {side}",
        "back": "low back pain; {side} flank/back ache",
        "belly": "lower abd pain; suprapubic/LIF ache",
        "headache": "HA daily; HA + poor conc",
        "sleep": "poor sleep, up most nights; tired from broken sleep",
        "leg": "swollen {side} leg; bilat leg swelling",
        "cough": "dry cough noct; cough when supine",
        "weight": "wt loss 6kg; dec appetite + wt loss",
        "redness": "red hot swelling {side} foot; {side} elbow red + tender",
        "itch": "gen itch; itching worse noct",
        "numb patch": "numb patch {side} thigh; burning skin {side} trunk",
    },
    clues={
        "cardiology": """CP rad {side} arm on exertion; orthopnea, 3 pillows; PND nightly; irreg
            irreg pulse; BP 184/106 on rpt; AF on strip; new systolic murmur; JVP up, pitting
            edema; pacer check overdue; ST dep V4-6; exertional angina, NTG helps; EF 35% on
            echo""",
        "respiratory medicine": """prod cough, green sputum; noct wheeze, inhaler not helping; sats
            90% RA; small vol hemoptysis; pleuritic pain on deep insp; crackles {side} base; COPD
            exac; CXR {side} lower zone shadow; 40 pk-yr, am phlegm; peak flow down 40%; rec LRTI
            this winter; snores, witnessed apneas""",
        "gastroenterology": """epigastric burn p meals; melena x{n}; bright PR bleed; alt bowel
            habit; dysphagia to solids; jaundice, LFTs up; bloating + loose stool; vomits p food;
            RUQ colic p fatty meal; constip {n}d w/ cramps; calprotectin high; reflux despite
            PPI""",
        "neurology": """gen tonic-clonic sz; {side} facial droop; unilat throbbing HA w/ aura; rest
            tremor {side} hand; slurred speech 20 min, resolved; diplopia on {side} gaze; memory
            decline per family; ataxic gait, veers {side}; brisk reflexes + clonus; {side}
            hemiparesis mild; absent spells, staring; ?MS relapse""",
        "orthopedics": """{side} knee locks + gives way; NWB {side} ankle p fall; {side} shoulder
            painful arc; hip OA, groin pain on rotation; FOOSH, wrist deformity; {side} sciatica,
            SLR 40; heel pain first steps; {side} knee effusion p twist; trigger finger {side}
            ring; Achilles tender; cast check {side} tibia; stiff joints, crepitus""",
        "dermatology": """itchy plaques extensors; changing mole {side} calf; flexural eczema
            flare; vesicles {side} flank; wheals, ?urticaria; nail pitting; cystic acne jaw;
            non-healing shin ulcer; annular scaly lesion; pearly nodule {side} nose; hand
            dermatitis, new soap; scaly scalp + hair loss""",
        "urology": """dysuria + freq; frank hematuria; nocturia x{n}; poor stream, hesitancy; flank
            to groin colic; retention, 800ml on scan; urge incont; leaks on cough; {side} UVJ stone
            on CT; rec UTI; cath blocked; cloudy urine, nitrites +""",
        "mental health": """low mood, anhedonia; panic attacks in crowds; early waking, ruminates;
            hears voices; pressured speech, no sleep; flashbacks p MVC; checks locks repeatedly;
            not leaving house; binge/purge; EtOH to cope, tearful; GAD, constant worry; stopped
            lithium""",
    },
)

TARNWELL = Hospital(
    name="Tarnwell Memorial",
    prefix="TM",
    patients=340,
    mix=(12, 2, 10, 25, 16, 13, 3, 19),
    ages=(19, 88),
    sexes=(("man", "gentleman"), ("woman", "lady")),
    sides=("left", "right"),
    first="""A {age}-year-old {sex} who describes; This {age}-year-old {sex} presents with; I was
        asked to see a {age}-year-old {sex} with; Thank you for referring this {sex} of {age} with;
        Today I met a {age}-year-old {sex} troubled by""",
    again="""This {age}-year-old {sex} returns because of; At review the {age}-year-old {sex} still
        mentions; I saw this {sex} of {age} again regarding; Since the last visit this
        {age}-year-old {sex} has noticed""",
    joiners=(" and ", ", together with ", " as well as ", ", and also "),
    since="""for roughly {n} weeks; over the past {n} months; for the last {n} days; intermittently
        for {n} weeks; gradually worse over {n} months""",
    general="""a general sense of fatigue; a mildly raised temperature; occasional dizziness;
        widespread aching; a poor appetite; episodes of sweating; a dull pain that comes and goes;
        a feeling of being unwell; moderate pain that limits daily chores; some nausea; a marked
        lack of energy; a fever two days ago""",
    history="""There is a background of well-controlled asthma; The father suffered a heart attack
        at sixty; Blood pressure is treated with two tablets; There was eczema in childhood; A
        kidney stone passed {n} years ago; Migraine runs in the family; Diabetes is managed with
        diet; There is a remote history of reflux; An antidepressant was stopped {n} years ago; The
        {side} hip was replaced {n} years ago; There was a single seizure in infancy; Smoking was
        given up {n} years ago; A rash followed penicillin years ago; The gallbladder was removed
        {n} years ago""",
    clear="""There is no chest pain; There is no cough and the lungs are clear; Bowels are regular
        and the abdomen is soft; Neurological examination was normal; The joints move freely; The
        skin is clear; There are no urinary complaints; Mood is described as stable""",
    closings="""I have asked for routine blood tests; I will write again with the results; Please
        advise on further management; We agreed to meet again in {n} weeks; The findings were
        explained at length; The current medication was left unchanged; I would be grateful for
        your opinion""",
    shared={
        "chest": "an ill-defined discomfort in the chest; a tightness around the chest",
        "breath": "shortness of breath; a feeling of not getting enough air",
        "heartbeat": "a pounding heart; episodes of rapid heartbeat",
        "collapse": "a brief loss of consciousness; an unexplained collapse at home",
        "tingling": "tingling in both hands; pins and needles in the {side} fingers",
        "weakness": "weakness of the {side} leg; difficulty gripping with the {side} hand",
        "back": "persistent pain in the lower back; an ache in the {side} side of the back",
        "belly": "pain low in the abdomen; a cramping ache below the navel",
        "headache": "frequent headaches; headaches with poor concentration",
        "sleep": "badly broken sleep; daytime tiredness after restless nights",
        "leg": "swelling of the {side} lower leg; heavy, swollen legs",
        "cough": "a dry cough at night; a tickling cough on lying down",
        "weight": "unintended weight loss; a loss of appetite with weight loss",
        "redness": """a warm red swelling over the {side} elbow; redness and tenderness of the
            {side} foot""",
        "itch": "troublesome itching all over; itching that is worse at night",
        "numb patch": """a numb patch on the {side} thigh; a burning sensation over the {side}
            flank""",
    },
    clues={
        "cardiology": """crushing pressure behind the breastbone when climbing hills; a fluttering
            irregular heartbeat; a need for three pillows to breathe at night; pitting swelling of
            both ankles by evening; chest heaviness spreading to the {side} arm; persistently high
            blood pressure readings; a newly heard heart murmur; a slow pulse with near fainting;
            angina relieved by nitroglycerin; skipped beats confirmed on the monitor; a weak pump
            function on echocardiography; an implanted pacemaker due for checking""",
        "respiratory medicine": """a productive cough with green sputum; nightly wheezing despite
            inhalers; low oxygen saturation on walking; flecks of blood in the sputum; a sharp pain
            on taking deep breaths; crackles at the {side} lung base; a flare of chronic
            bronchitis; a shadow on the {side} lung; morning phlegm after decades of smoking;
            falling peak flow readings; repeated chest infections this winter; loud snoring with
            pauses in breathing""",
        "gastroenterology": """burning behind the breastbone after meals; black tarry stools; fresh
            blood on the toilet paper; alternating diarrhea and constipation; food sticking when
            swallowing; yellowing of the eyes with dark urine; bloating and loose stools after
            bread; vomiting shortly after eating; cramps under the {side} ribs after fatty food;
            raised liver enzymes; mucus and urgency of stool; sour regurgitation at night""",
        "neurology": """a convulsion witnessed by the family; sudden drooping of the {side} face;
            throbbing one-sided headache preceded by zigzag lights; a resting tremor of the {side}
            hand; a short spell of slurred speech; double vision on looking {side}; increasing
            forgetfulness and getting lost; an unsteady gait drifting to the {side}; clumsiness and
            stiffness on the {side} side of the body; staring spells with lip smacking; electric
            shocks down the spine on bending the neck; small shuffling steps and a soft voice""",
        "orthopedics": """a {side} knee that locks and gives way; inability to bear weight after a
            fall; a painful {side} shoulder on overhead reach; groin pain and stiffness of the
            {side} hip; a swollen wrist after landing on the hand; pain shooting from the buttock
            to the calf; heel pain with the first morning steps; a twisted {side} ankle that
            remains swollen; a finger that catches when bent; grinding of the {side} kneecap on
            stairs; a stiff neck after lifting furniture; a slowly healing fracture of the {side}
            shin""",
        "dermatology": """thick scaly plaques on both elbows; a mole on the {side} calf that
            changed color; weeping patches in the elbow creases; a band of blisters around the
            {side} flank; raised wheals that come and go; pitted and crumbling nails; deep painful
            spots along the jaw; a sore on the shin that will not heal; a ring-shaped scaly patch;
            a pearly lump beside the nose; cracked hands after changing soap; patches of hair loss
            with scaling""",
        "urology": """burning when passing urine; visible blood in the urine; rising {n} times a
            night to urinate; a weak stream with hesitancy; waves of pain from the flank to the
            groin; inability to empty the bladder; a sudden urge with leakage of urine; leakage
            when coughing or laughing; a stone in the {side} ureter; repeated bladder infections; a
            blocked urinary catheter; cloudy urine with a strong smell""",
        "mental health": """a persistently low mood and loss of interest; sudden panic in crowded
            shops; early waking with guilty brooding; voices commenting on daily actions; racing
            thoughts and reckless spending; nightmares and flashbacks after an accident; repeated
            checking of locks and stoves; withdrawal from friends and work; bouts of overeating
            followed by purging; drinking to calm the nerves; constant worry about small matters;
            tearfulness since a bereavement""",
    },
)

LARKFIELD = Hospital(
    name="Larkfield Children's",
    prefix="LC",
    patients=270,
    mix=(3, 22, 14, 3, 16, 23, 4, 15),
    ages=(6, 16),
    sexes=(("boy", "kid", "son"), ("girl", "kid", "daughter")),
    sides=("left", "right"),
    first="""{age}-year-old {sex}, mom says {he}; {age} y/o {sex} here with dad, {he}; School nurse
        sent {age}-year-old {sex}, {he}; {age} yo {sex}, grandma worried {he}; Parents brought
        {age}-year-old {sex} who""",
    again="""{age} y/o {sex} back in clinic, {he} still; Mom called again, {age}-year-old {sex}
        who; Recheck of {age}-year-old {sex}, {he}; {age} yo {sex} seen again, dad says {he}""",
    joiners=(" and ", ", also ", " and now ", ", plus "),
    since="""for {n} days; since last week; for {n} weeks now; ever since school started; on and
        off for {n} weeks""",
    general="""has been cranky; felt warm last night; is tired after school; says everything hurts;
        is picky with food lately; looked pale; had a fever of 101; gets dizzy sometimes; missed
        {n} days of school; does not want to play; cries with pain; feels yucky""",
    history="""Known asthma, inhaler at school; Born at 35 weeks; Shots up to date; Peanut allergy;
        Grandpa had a heart attack; Eczema as a baby; Big sister has migraines; Ear tubes at two;
        Broke {his} {side} arm at four; Sees the school counselor; Bladder infection as a toddler;
        Twin brother is well; Takes vitamins; Little brother is sick too; Used to have reflux""",
    clear="""Heart sounds fine; No cough, no runny nose; Belly soft; Alert, normal reflexes; Walks
        and runs ok; Skin looks fine; Pees fine; Plays happily in the room""",
    closings="""Mom will keep a diary; Handout given to parents; Sticker given, brave kid; Recheck
        in {n} weeks; School note written; Dad has our phone number; Drink plenty and rest; Growth
        chart on track; Call us if worse""",
    shared={
        "chest": "says {his} chest feels funny; points to {his} chest when it hurts",
        "breath": "gets out of breath; breathes fast at times",
        "heartbeat": "feels {his} heart beat fast; says {his} heart is jumping",
        "collapse": "passed out at recess; fell down and went limp",
        "tingling": "has tingly hands; shakes out {his} {side} hand because it prickles",
        "weakness": "drags the {side} leg; keeps dropping things from the {side} hand",
        "back": "complains that {his} back hurts; holds {his} {side} side and back",
        "belly": "has a sore lower belly; doubles over with tummy pain",
        "headache": "has headaches after school; gets headaches before tests",
        "sleep": "sleeps badly; wakes up several times a night",
        "leg": "has a puffy {side} leg; gets swollen feet",
        "cough": "coughs when lying down; has a dry night cough",
        "weight": "lost weight this fall; hardly eats and looks thin",
        "redness": "has a red, hot {side} knee; has a sore red {side} toe",
        "itch": "scratches all night; is itchy all over",
        "numb patch": "has a patch on {his} {side} leg that feels asleep; says {his} skin burns",
    },
    clues={
        "cardiology": """turns bluish around the lips at soccer; has a heart murmur at the sports
            check; gets chest pain while running laps; needs follow-up of a hole in the heart;
            feels skipped heartbeats in gym; nearly faints at swim practice with a racing pulse;
            has high blood pressure at the school physical; had an odd heart tracing""",
        "respiratory medicine": """wheezes at night; coughs up green mucus; barks like a seal when
            coughing; needs {his} rescue inhaler before gym; pulls in {his} ribs to breathe; has
            had pneumonia twice; whistles when breathing out; snores and stops breathing for
            moments; gets tight lungs around cats; has a wet cough that never clears; had low
            oxygen at urgent care; cannot blow well into the peak flow meter""",
        "gastroenterology": """throws up after meals; has not pooped for {n} days; has blood in the
            poop; gets diarrhea after milk; spits up sour stuff at night; has a bloated belly after
            bread; has greasy stools; soils {his} underwear with loose stool; gags on solid food;
            has yellow eyes; burps acid and swallows hard; has mouth sores and belly cramps with
            diarrhea""",
        "neurology": """had a seizure with shaking arms; stares and does not answer for seconds;
            gets throbbing headaches with flashing lights; has a twitching {side} face; walks
            wobbly and falls to the {side}; sees double; lost words for a few minutes; blinks and
            jerks in the morning""",
        "orthopedics": """limps on the {side} leg after soccer; fell off the monkey bars onto {his}
            wrist; has a sore bump below the {side} knee; twisted {his} {side} ankle at gym; cannot
            raise the {side} arm after a tackle; walks on tiptoe with tight heels; has one shoulder
            higher than the other; has a clicking {side} hip; jammed {his} finger in basketball;
            has a cast that feels tight; gets heel pain after running; has in-turned feet and
            trips""",
        "dermatology": """has dry itchy patches in the elbow folds; has a ring-shaped spot on the
            {side} arm; broke out in hives after nuts; has honey-colored crusts by the nose; has
            warts on the {side} hand; has pimples all over the forehead; scratches a scaly scalp;
            has tiny bumps with dimples on {his} tummy; got a blistery rash from a plant; has a
            mole that is growing; has peeling skin between the toes; has cracked lips and raw
            cheeks""",
        "urology": """wets the bed again; cries when peeing; has pink pee; runs to pee every half
            hour; dribbles pee at school; has smelly cloudy pee; holds pee and leaks when laughing;
            has had a third bladder infection""",
        "mental health": """refuses to go to school; worries about everything at bedtime; has
            meltdowns and hits walls; washes {his} hands over and over; does not talk to friends
            anymore; cannot sit still or finish homework; panics when mom leaves; skips lunch and
            counts calories; has been sad since the divorce; gets bullied and hides in {his} room;
            pulls out {his} hair when nervous; has nightmares since the car crash""",
    },
)

WEXCOMBE = Hospital(
    name="Wexcombe Infirmary",
    prefix="WI",
    patients=300,
    mix=(12, 12, 16, 3, 14, 15, 25, 3),
    ages=(18, 93),
    sexes=(("gent", "chap", "gentleman"), ("lady", "woman")),
    sides=("left", "right"),
    first="""{age} year old {sex}, says {he}; Pleasant {sex} of {age}, {he}; {age} yr old {sex},
        tells us {he}; Walked in, {sex} of {age}, {he}; GP sent this {sex}, {age}, as {he}""",
    again="""{sex} of {age}, back as {he} still; Known to us, {age} yr old {sex}, {he}; Popped in
        again, {sex} of {age}, {he}; {age} year old {sex}, reckons {he} still""",
    joiners=(" and ", ", ", " and what's more ", ", plus "),
    since="""for the past fortnight; for {n} days; for about {n} weeks now; on and off for {n}
        months; since the bank holiday""",
    general="""feels under the weather; is shattered; has been a bit feverish; comes over all
        funny; aches all over; is off {his} food; feels rotten; has a nagging pain; feels faint now
        and then; is in agony on bad days; has gone downhill; feels sick""",
    history="""Bit of asthma, blue puffer; Dad had a heart attack at 58; On water tablets; Had
        eczema as a nipper; Sugar diabetes, diet only; Passed a kidney stone {n} years back; Bad
        nerves {n} years back; New {side} hip, doing nicely; Gave up the fags; Mum had migraines;
        Takes something for acid; Psoriasis on and off for years; Gallstones out {n} years back;
        Brother has epilepsy; Lives alone with a cat; Tablets for blood pressure""",
    clear="""No chest pain to speak of; Chest clear, no cough; Bowels fine; No fits, walks
        straight; Gets about well; Skin all clear; Waterworks fine; Spirits are good""",
    closings="""Sent home with paracetamol; To ring us if no better; Back in a fortnight; Daughter
        will keep an eye; Bloods done; Happy to wait; Cup of tea helped; Letter to GP; Appointment
        card given; Would like to know what's what""",
    shared={
        "chest": "has a funny feeling in {his} chest; gets a tight chest",
        "breath": "gets out of puff; is short of breath",
        "heartbeat": "feels {his} heart thumping; has a racing heart",
        "collapse": "blacked out in the kitchen; keeled over at the shops",
        "tingling": "has pins and needles in the hands; gets tingly {side} fingers",
        "weakness": "finds {his} {side} leg gone weak; can't grip a mug with the {side} hand",
        "back": "has a bad back; gets an ache round the {side} side of {his} back",
        "belly": "has pain low down in {his} tummy; gets cramps in the lower belly",
        "headache": "has a thick head most days; gets bad heads and can't think straight",
        "sleep": "sleeps dreadfully; is up and down all night",
        "leg": "has a swollen {side} leg; has puffy legs",
        "cough": "coughs of a night; has a tickly cough in bed",
        "weight": "has lost a stone; is off {his} grub and getting thin",
        "redness": "has a red, angry {side} foot; has a hot sore {side} elbow",
        "itch": "itches something terrible; is itchy all over in bed",
        "numb patch": """has a dead patch on the {side} thigh; feels a burning on the skin of {his}
            side""",
    },
    clues={
        "cardiology": """gets a weight on {his} chest walking up the hill; has a heart that skips
            and flutters; needs propping up in bed to breathe; has ankles like balloons by teatime;
            gets pain down the {side} arm with the chest; has sky-high blood pressure; was told of
            a murmur; uses the angina spray more; has a dicky heart and a slow pulse; gets puffed
            and grey on the stairs; is due a pacemaker check; has a pulse all over the place""",
        "respiratory medicine": """brings up green phlegm; is wheezy at night; coughs up a spot of
            blood; has a stabbing pain when breathing in; has a rattly chest; smokes and coughs
            every morning; uses the blue puffer six times a day; had three chest infections this
            winter; snores and stops breathing; can't shift a chesty cough; has a shadow on the
            lung; is on home oxygen""",
        "gastroenterology": """has heartburn after tea; has black stools; sees blood on the loo
            paper; has the runs then gets bunged up; finds food sticks going down; has gone yellow;
            is bloated and windy; brings everything back up; gets griping pain after a fry-up; has
            diarrhoea ten times a day; has piles that bleed; has acid coming up at night""",
        "neurology": """had a fit on the bus; has a drooping {side} face; gets migraines with
            zigzags; has a shaky {side} hand at rest; talked gibberish for ten minutes; sees
            double; forgets names and gets lost; staggers to the {side} as if drunk; has gone stiff
            and shuffles; drops off staring blankly""",
        "orthopedics": """has a {side} knee that gives way; went over on the {side} ankle; can't
            lift the {side} shoulder to brush {his} hair; has a worn-out hip and groin pain;
            slipped on ice and hurt {his} wrist; has sciatica down the {side} leg; hobbles on a
            sore heel every morning; has creaky swollen knees; has a finger that clicks and sticks;
            did {his} back in gardening; has a broken collarbone mending slowly; can't kneel or
            bend""",
        "dermatology": """has scaly patches on both elbows; has a mole that's changed; has weepy
            eczema behind the knees; has shingles blisters round the middle; comes out in
            nettle-like welts; has crumbly nails; has boils and spots on the back; has a leg ulcer
            that won't mend; has a ring of scaly skin; has a crusty lump on the {side} ear; has
            cracked hands from washing-up liquid; is losing hair in clumps with a flaky scalp""",
        "urology": """finds it burns to spend a penny; passes blood in the water; is up {n} times a
            night to wee; has a dribbly stream; has pain from loin to groin in waves; can't pass
            water; can't make it to the loo in time; leaks when coughing or sneezing; has another
            kidney stone; has cystitis again; has a catheter that keeps blocking; has cloudy,
            smelly wee""",
        "mental health": """feels low and can't enjoy anything; has panics on the bus; wakes at
            four fretting; hears voices; can't stop talking and spending; has flashbacks of a
            crash; checks the gas over and over; won't leave the house; cries all day since losing
            {his} mum; drinks to steady {his} nerves; frets over nothing at all; has given up on
            work and friends""",
    },
)

HOSPITALS = (NORTHGATE, TARNWELL, LARKFIELD, WEXCOMBE)
