"""Every error a user can meet: a code, what it means, how to mend it.

An error has two texts. The *detail* (``str(error)``) is for the person at this machine and
may name files, columns and values. The *public reason* (:attr:`LoricaError.public_reason`)
comes from the catalogue alone, carries nothing of the data, and is all that may travel to a
coordinator (design rule 1: exceptions never carry data).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Code(Enum):
    """Error codes, by area: 1xx plan, 2xx backbone and adapter, 3xx data, 4xx privacy,
    5xx protocol and federation, 6xx storage, 7xx sites and coordinator on machines of their
    own, 8xx run store and monitor, 9xx unexpected."""

    PLAN_UNREADABLE = "LOR-101"
    PLAN_UNKNOWN_KEY = "LOR-102"
    PLAN_BAD_VALUE = "LOR-103"
    PLAN_MISMATCH = "LOR-104"
    PERSONAL_UNREADABLE = "LOR-131"
    PERSONAL_ABSENT = "LOR-132"

    BACKBONE_NOT_FOUND = "LOR-201"
    BACKBONE_HASH = "LOR-202"
    BACKBONE_UNREACHABLE = "LOR-203"
    BACKBONE_UNSUPPORTED = "LOR-204"
    ADAPTER_MISMATCH = "LOR-205"
    ADAPTER_UNREADABLE = "LOR-206"
    PACKAGE_MISSING = "LOR-207"
    HARDWARE_MISSING = "LOR-208"
    EXPORT_DIFFERS = "LOR-209"
    EXPORT_FORM = "LOR-210"
    PUSH_REFUSED = "LOR-211"
    TOKENIZER_OFFSETS = "LOR-221"

    DATA_NOT_FOUND = "LOR-301"
    DATA_COLUMN = "LOR-302"
    DATA_ENCODING = "LOR-303"
    DATA_MALFORMED = "LOR-304"
    DATA_EMPTY_TEXT = "LOR-305"
    DATA_UNKNOWN_LABEL = "LOR-306"
    DATA_TOO_FEW_LABELS = "LOR-307"
    DATA_TOO_FEW_RECORDS = "LOR-308"
    DATA_PARTITION = "LOR-309"
    DATA_UNIT = "LOR-310"
    DATA_TARGET = "LOR-311"
    DATA_VALUE = "LOR-312"
    DATA_UNREACHABLE = "LOR-320"
    DATA_LOST = "LOR-321"
    DATA_QUERY = "LOR-322"
    DATA_QUERY_WRITES = "LOR-323"
    DATA_CREDENTIALS = "LOR-324"
    DATA_TIMEOUT = "LOR-325"
    DATA_KIND = "LOR-326"
    DATA_IMAGE = "LOR-327"
    DATA_TOO_LARGE = "LOR-328"
    DATA_OUTSIDE = "LOR-329"
    DATA_DUPLICATES = "LOR-330"
    DATA_CLASSES = "LOR-331"
    DATA_ALIKE = "LOR-332"
    DATA_CHANGED = "LOR-333"
    OUTPUT_KIND = "LOR-334"
    DATA_UNFIT = "LOR-335"
    FORGOTTEN_DAMAGED = "LOR-336"

    PRIVACY_EPSILON = "LOR-401"
    PRIVACY_DELTA = "LOR-402"
    PRIVACY_BUDGET = "LOR-403"
    PRIVACY_UNSAFE_MODEL = "LOR-404"
    PRIVACY_FROZEN = "LOR-405"
    PRIVACY_CALIBRATION = "LOR-406"
    AUDIT_EXCEEDED = "LOR-407"
    POLICY_REFUSED = "LOR-408"
    SITE_CONFIG = "LOR-409"
    AUDIT_UNSUPPORTED = "LOR-410"
    PRIVACY_INEXACT = "LOR-411"
    ADAPTER_REFUSED = "LOR-412"

    MESSAGE_MALFORMED = "LOR-501"
    UPDATE_REFUSED = "LOR-502"
    TOO_FEW_SITES = "LOR-503"
    SITE_SILENT = "LOR-504"
    NO_TRAINER = "LOR-505"
    ENGINE_FAILED = "LOR-506"
    REQUEST_UNSIGNED = "LOR-507"
    SIGNATURE_INVALID = "LOR-508"
    COORDINATOR_UNKNOWN = "LOR-509"
    COORDINATOR_KEY = "LOR-510"
    WORKER_DIED = "LOR-511"
    REQUEST_MISADDRESSED = "LOR-512"
    REQUEST_REPLAYED = "LOR-513"
    REPLY_FORGED = "LOR-514"
    SITE_TOO_LARGE = "LOR-515"
    ROSTER_INVALID = "LOR-531"
    PEERS_UNCONFIRMED = "LOR-532"
    SUM_UNKNOWN = "LOR-533"
    SURVIVORS_REFUSED = "LOR-534"
    SEALED_REPLY_REFUSED = "LOR-535"
    SUM_LOST = "LOR-536"

    STORAGE_FULL = "LOR-601"
    STORAGE_DENIED = "LOR-602"
    RUN_FOLDER_EXISTS = "LOR-603"
    RUN_NOT_RESUMABLE = "LOR-604"
    LEDGER_LOCKED = "LOR-611"
    LEDGER_DAMAGED = "LOR-612"
    LEDGER_ROLLED_BACK = "LOR-613"
    LEDGER_MISSING = "LOR-614"
    LEDGER_MISMATCH = "LOR-615"

    REQUEST_STALE = "LOR-710"
    TRAINER_DOWN = "LOR-711"
    TRAINER_BUSY = "LOR-712"
    TRAINER_RUNNING = "LOR-713"
    TRAINER_SOCKET = "LOR-714"
    TRAINER_NOT_ISOLATED = "LOR-715"
    CODE_NOT_APPROVED = "LOR-716"
    AWAITING_APPROVAL = "LOR-717"
    RUN_DENIED = "LOR-718"
    RUN_NOT_ASKED = "LOR-719"
    INVITATION_INVALID = "LOR-720"
    REGISTRATION_REFUSED = "LOR-721"
    FEDERATION_EXISTS = "LOR-722"
    FEDERATION_MISSING = "LOR-723"
    CERTIFICATE = "LOR-724"
    ALREADY_RUNNING = "LOR-725"
    PROGRAM_MISSING = "LOR-726"
    COORDINATOR_DOWN = "LOR-727"
    SITE_UNKNOWN = "LOR-728"
    CHECK_FAILED = "LOR-729"
    PORT_TAKEN = "LOR-730"
    COORDINATOR_CONFIG = "LOR-731"
    TOO_MANY_PENDING = "LOR-732"
    RUN_UNKNOWN = "LOR-740"
    RUN_STATE = "LOR-741"
    RUN_CRASHED = "LOR-742"
    RUN_STOPPED = "LOR-743"

    STORE_UNREACHABLE = "LOR-801"
    STORE_SCHEMA = "LOR-802"
    STORE_BEHIND = "LOR-804"
    ARTEFACT_UNKNOWN = "LOR-807"
    RUN_EXISTS = "LOR-808"
    TRACKER_FAILED = "LOR-809"
    MONITOR_SETTINGS = "LOR-820"
    MONITOR_OPEN = "LOR-821"
    MONITOR_PLAINTEXT = "LOR-822"
    ACCOUNT = "LOR-823"
    PASSWORD_WEAK = "LOR-824"
    API_TOKEN = "LOR-825"
    ACCESS_DENIED = "LOR-826"
    REQUEST_FOREIGN = "LOR-827"
    FORM_FORGED = "LOR-828"
    MONITOR_PORT = "LOR-829"
    SERVER_BUSY = "LOR-840"
    SERVER_REQUEST = "LOR-841"
    SERVER_TOKEN = "LOR-842"

    UNEXPECTED = "LOR-901"

    @property
    def entry(self) -> Entry:
        """The catalogue's page on this code."""
        return CATALOGUE[self]

    @property
    def public_reason(self) -> str:
        """Code and title, in one line."""
        return f"{self.value}: {self.entry.title}"


@dataclass(frozen=True)
class Entry:
    """One page of the catalogue.

    ``title`` is a sentence without any value of the occasion: it is what a coordinator sees.
    """

    title: str
    meaning: str
    mend: str


CATALOGUE: dict[Code, Entry] = {
    Code.PLAN_UNREADABLE: Entry(
        "The plan could not be read.",
        "The file is missing, is not TOML, or a --set argument is not of the form key=value.",
        "Check the path and the TOML syntax; `lorica plan defaults` prints a plan to start from.",
    ),
    Code.PLAN_UNKNOWN_KEY: Entry(
        "The plan has a key that Lorica does not know.",
        "A misspelt or misplaced key would silently change nothing, so it is refused.",
        "Use the nearest valid name that the message gives; `lorica plan defaults` lists all.",
    ),
    Code.PLAN_BAD_VALUE: Entry(
        "The plan has a value that cannot be.",
        "A value has the wrong type, lies outside its range, or contradicts another value.",
        "Set the named key to a value in the range that the message gives.",
    ),
    Code.PLAN_MISMATCH: Entry(
        "The plan is not the one that was agreed.",
        "The fingerprint that came with a message differs from that of the plan it holds, or a "
        "resumed run was given another plan.",
        "Start a new run for a changed plan; resume with the plan stored in the run's folder.",
    ),
    Code.PERSONAL_UNREADABLE: Entry(
        "The part of the adapter that the site keeps for itself could not be read.",
        "Under methods such as fedsa a site goes on from tensors of its own, in the folder "
        "'personal' beside its ledger. The file that the message names is damaged; training from "
        "anything else would not be the run that was begun.",
        "Restore the file from a backup, or delete it: the site then begins its own part anew.",
    ),
    Code.PERSONAL_ABSENT: Entry(
        "The site keeps no part of its own of this adapter.",
        "Only methods such as fedsa leave a part of the adapter at each site, and only a site that "
        "trained in the run has one.",
        "Give the adapter of a run in which this site took part, and its site.toml with --config.",
    ),
    Code.BACKBONE_NOT_FOUND: Entry(
        "The pretrained model was not found.",
        "The folder given as backbone.source does not exist or holds no model.",
        'Give a folder with config.json and model.safetensors, a hub id, or "embedded".',
    ),
    Code.BACKBONE_HASH: Entry(
        "The pretrained model's weights are not the expected ones.",
        "The SHA-256 of the weights differs from the plan's or the pinned one. The file is "
        "damaged, of another revision, or was tampered with.",
        "Fetch the model anew, or correct backbone.sha256 if the other weights are intended.",
    ),
    Code.BACKBONE_UNREACHABLE: Entry(
        "The pretrained model could not be fetched from the hub.",
        "There is no network, the hub refused, or the id or revision does not exist there.",
        "Check the id and revision; on a machine without network copy the model's folder "
        'there and give its path as backbone.source, or use "embedded".',
    ),
    Code.BACKBONE_UNSUPPORTED: Entry(
        "The pretrained model has a structure that Lorica cannot adapt.",
        "The layers or modules that the plan names were not found in the model.",
        "Set adapter.target_modules and adapter.layers to names and indices the model has.",
    ),
    Code.ADAPTER_MISMATCH: Entry(
        "The adapter does not fit the plan.",
        "It was made for another backbone, other labels, another rank or other modules.",
        "Use the plan that the adapter was trained with (plan.toml beside it).",
    ),
    Code.ADAPTER_UNREADABLE: Entry(
        "The adapter could not be read.",
        "The folder lacks a file that an adapter needs, or a file is damaged.",
        "Give the adapter/ folder of a finished run.",
    ),
    Code.PACKAGE_MISSING: Entry(
        "A package that this command needs is not installed.",
        "Lorica's base installation is light; training, simulation and the embedded model are "
        "extras.",
        "Install the extra that the message names, for example pip install 'lorica[train]'.",
    ),
    Code.HARDWARE_MISSING: Entry(
        "The machine lacks hardware that is asked for.",
        "Only some processors and graphics cards compute in bfloat16; a graphics card needs a "
        "build of torch that knows it.",
        "Ask for what the machine has, as the message says.",
    ),
    Code.EXPORT_DIFFERS: Entry(
        "The exported model does not compute what the adapter does.",
        "Both were given the same made-up records, and their outputs are further apart than "
        "rounding explains. Nothing was written.",
        "Export another form with --format, and report the backbone's architecture.",
    ),
    Code.EXPORT_FORM: Entry(
        "The adapter cannot be exported in this form.",
        "Only LoRA has peft's format, and only tasks that answer in one pass become one ONNX "
        "graph; some architectures cannot be traced.",
        "Export it with --format merged, which takes every adapter.",
    ),
    Code.PUSH_REFUSED: Entry(
        "The result was not given away.",
        "It was trained without differential privacy, or the hub did not take it: no token, no "
        "such owner, no way to it.",
        "For a model without privacy, give --without-privacy if that is meant. For a hub, `hf "
        "auth login` or HF_TOKEN gives the token, and HF_HUB_OFFLINE has to be unset.",
    ),
    Code.TOKENIZER_OFFSETS: Entry(
        "The tokenizer cannot say where its tokens are in the text.",
        "Entities are found by their place in the text, and only tokenizers of the tokenizers "
        "library (tokenizer.json) keep it.",
        "Use a backbone with a tokenizer.json, or convert its tokenizer to one.",
    ),
    Code.DATA_NOT_FOUND: Entry(
        "The data could not be found.",
        "The path in data.train or data.test, or at a site in data.source, does not exist or "
        "cannot be opened.",
        "Check the path; relative paths start from the folder where the command runs, those in "
        "site.toml from the folder that it is in.",
    ),
    Code.DATA_COLUMN: Entry(
        "A column that the plan names is not in the data.",
        "data.text, data.label, data.unit or simulation.column names a column that the header "
        "lacks.",
        "Set it to one of the columns that the message lists.",
    ),
    Code.DATA_ENCODING: Entry(
        "The data are not UTF-8 text.",
        "Lorica reads UTF-8 and does not guess: a wrong guess corrupts names silently.",
        "Convert the file, for example: iconv -f latin1 -t utf-8 old.csv > new.csv",
    ),
    Code.DATA_MALFORMED: Entry(
        "The data file is malformed.",
        "A row has another number of fields than the header, or the file is empty.",
        "Mend the row that the message names; quote fields that hold commas or line breaks.",
    ),
    Code.DATA_EMPTY_TEXT: Entry(
        "A record has no text.",
        "An empty text cannot be classified; training on it would spend privacy for nothing.",
        "Remove the rows that the message names, or fill in their text.",
    ),
    Code.DATA_UNKNOWN_LABEL: Entry(
        "A record has a label that the plan does not have.",
        "All sites must use the same labels; one outside the list has no place in the head.",
        "Add it to task.labels, or correct the row.",
    ),
    Code.DATA_TOO_FEW_LABELS: Entry(
        "There are fewer than two labels.",
        "A classifier needs at least two classes to tell apart.",
        "Check data.label: does it name the right column? Or list the labels in task.labels.",
    ),
    Code.DATA_TOO_FEW_RECORDS: Entry(
        "The site has too few records for this plan.",
        "Poisson sampling needs expected_batch_size <= number of records. `lorica site check` also "
        "says so of data with fewer units than policy.minimum_units.",
        "Lower training.expected_batch_size, use fewer sites, or leave the site out.",
    ),
    Code.DATA_PARTITION: Entry(
        "The data cannot be divided among the sites as asked.",
        "There are not enough records, or not enough values in the column, for so many sites.",
        "Lower simulation.sites, raise simulation.alpha, or choose another partition.",
    ),
    Code.DATA_UNIT: Entry(
        "A record does not say whose it is.",
        "The unit column is empty in some records. Taking them all as one unit, or each as its "
        "own, changes what the guarantee means, so somebody must decide.",
        'Fill in the column, or set missing_unit = "own" to count each as its own unit.',
    ),
    Code.DATA_TARGET: Entry(
        "A record's target is not what the plan's task needs.",
        "A number is missing or out of bounds, tags do not fit their tokens or break the BIO "
        "scheme, a span lies outside its text, or a list is no list of labels.",
        "Correct the record that the message names, or the plan's section task.",
    ),
    Code.DATA_VALUE: Entry(
        "A value of a table is not what its column is said to hold.",
        "A column of numbers holds text, NaN or infinity, a column of categories holds a value "
        "that the plan does not list, or a cell is as long as a text.",
        "Correct the record that the message names, leave the cell empty where the value is "
        "missing, or correct the plan's section table.",
    ),
    Code.DATA_UNREACHABLE: Entry(
        "The server that holds the data could not be reached, or refused the login.",
        "Host, port, database, user or password are not what the server expects, or it is down. "
        "Nothing was read.",
        "Check data.source and data.password in site.toml, and that the server answers from here.",
    ),
    Code.DATA_LOST: Entry(
        "The connection to the data was lost while they were read.",
        "The server went away or ended the session. What was read so far is discarded: records "
        "are used whole or not at all, and nothing was charged.",
        "See the server's log; start again when it is back.",
    ),
    Code.DATA_QUERY: Entry(
        "The query cannot be run on the database as it is.",
        "A table or column is missing or was renamed, a right is missing, or the SQL is faulty.",
        "Run data.query with the same user in the database's own shell, and correct it.",
    ),
    Code.DATA_QUERY_WRITES: Entry(
        "The query would change the database.",
        "Lorica reads in a transaction that the database itself holds read-only.",
        "Give one SELECT as data.query; let a user without write permissions run it.",
    ),
    Code.DATA_CREDENTIALS: Entry(
        "The credentials for the data cannot be used.",
        "They stand in site.toml, which others may read, or the variable or file that "
        "data.password names is missing, empty, or open to others.",
        'Set data.password to "env:NAME" or "file:PATH", the file with permissions 0600.',
    ),
    Code.DATA_TIMEOUT: Entry(
        "The database did not answer the query in time.",
        "The query ran longer than data.timeout_seconds. Nothing was kept.",
        "Add an index, ask for fewer rows, or raise data.timeout_seconds.",
    ),
    Code.DATA_KIND: Entry(
        "It cannot be told what kind of data the source is.",
        "The ending, folder or address is none that Lorica knows.",
        "Set data.kind, or give the data in a form that docs/data.md lists.",
    ),
    Code.DATA_IMAGE: Entry(
        "An image cannot be read.",
        "The file is truncated, damaged, or of a format that Lorica does not read.",
        "Replace or remove the file that the message names.",
    ),
    Code.DATA_TOO_LARGE: Entry(
        "A single item of the data is too large to be read safely.",
        "A few bytes can unpack to many gigabytes; whatever passes a generous limit is refused "
        "before it is unpacked.",
        "Look at the item that the message names; shrink or remove it if it is genuine.",
    ),
    Code.DATA_OUTSIDE: Entry(
        "A name in the data leads out of the data's folder.",
        "A path in a table, or a symbolic link, points elsewhere. Following it would read files "
        "that nobody offered.",
        "Copy the files into the folder, and name them relative to it.",
    ),
    Code.DATA_DUPLICATES: Entry(
        "The data hold the same record more than once.",
        'data.duplicates is "refuse". A record that is there twice counts twice against its '
        "unit's privacy and in every metric.",
        'Remove the copies, or set data.duplicates to "drop" or "keep".',
    ),
    Code.DATA_CLASSES: Entry(
        "A record has a label that the class map does not know.",
        "data.classes names some local labels, but not this one, and it is none of those that "
        "are mapped to.",
        'Add it to data.classes, or set data.unmapped = "drop" to leave such records out.',
    ),
    Code.DATA_ALIKE: Entry(
        "Two labels, or the names of two sites, only look alike.",
        "They differ in case, in blanks or invisible characters, in how Unicode composes a letter, "
        "or in how a number is written. Most often they are one class; taken as two, each is "
        "learned from half of its records.",
        'Correct the data, or set data.alike: "merge" takes them as one, "keep" as different.',
    ),
    Code.DATA_CHANGED: Entry(
        "The data are not those that were there before.",
        "A run would go on with other records than it began with, or a site's records are others "
        "than when its trainer was started last.",
        "Bring the old data back; or, if the change is meant: in a simulation, add --changed-data; "
        'at a site, `lorica site data accept`, or `changed = "accept"` in section [data] of '
        "site.toml where the records always change.",
    ),
    Code.OUTPUT_KIND: Entry(
        "Predictions cannot be written there.",
        "The ending of --output is of no format that Lorica writes, or it is the file that is "
        "read.",
        "Give --output a name of its own that ends in .csv, .tsv or .jsonl.",
    ),
    Code.DATA_UNFIT: Entry(
        "The site cannot answer this plan with its records.",
        "Something about the records keeps the site from it: a label or a target that the plan "
        "lacks, or a record that the work failed on. All of it has this one code, so that a "
        "coordinator cannot tell from it what the records are like.",
        "The site's own log says what it is. Let its operators look at it and correct the plan or "
        "the records; `lorica site data check` shows them what is there.",
    ),
    Code.FORGOTTEN_DAMAGED: Entry(
        "The list of units that are to be left out cannot be read.",
        "Without it the site would use records that it was told to forget, so it uses none.",
        "Restore forgotten.json, which lies beside the ledger, from a backup; or delete it and "
        "repeat `lorica site forget` for every unit.",
    ),
    Code.PRIVACY_EPSILON: Entry(
        "The privacy budget epsilon cannot be used.",
        "Epsilon must be above 0; inf means no privacy and must be written out.",
        "Set privacy.epsilon to a number such as 8, 3 or 1.",
    ),
    Code.PRIVACY_DELTA: Entry(
        "Delta is too large for the number of records.",
        "With delta >= 1/N a mechanism that publishes one record outright would count as private.",
        "Set privacy.delta below 1 divided by the smallest site's number of records.",
    ),
    Code.PRIVACY_BUDGET: Entry(
        "The request would pass the site's privacy budget.",
        "The steps asked for, with those already charged, exceed what the plan's epsilon allows, "
        "or a budget in section [ledger] of the site's site.toml: of a run, a period, a lifetime.",
        "End the run here, or start a new run with a budget of its own.",
    ),
    Code.PRIVACY_UNSAFE_MODEL: Entry(
        "The model has a layer that breaks per-record privacy.",
        "A layer couples records of a batch, or a trainable layer has no per-record gradient, "
        "or a trainable module is used twice in one forward pass.",
        "Train other modules, or replace the layer that the message names.",
    ),
    Code.PRIVACY_FROZEN: Entry(
        "A trainable matrix did not move in the first step.",
        "Privacy would be spent and nothing learned: the optimizer does not hold the "
        "parameter, or its gradient is always zero.",
        "Report this with the plan; it is a defect or an unsupported model.",
    ),
    Code.PRIVACY_CALIBRATION: Entry(
        "No noise level meets the privacy budget.",
        "The accountant found no noise multiplier that keeps all the steps within epsilon.",
        "Raise epsilon, or lower rounds.count, training.local_steps or expected_batch_size.",
    ),
    Code.AUDIT_EXCEEDED: Entry(
        "The audit found more leakage than is claimed.",
        "With the stated confidence, no mechanism that keeps the claimed epsilon gives what was "
        "observed: the noise, the clipping or the sampling is not what it should be.",
        "Do not release anything trained by this installation; report it with audit.json.",
    ),
    Code.POLICY_REFUSED: Entry(
        "The site's policy does not allow the plan.",
        "The plan asks for more than the institution's site.toml permits.",
        "Lower what the site's operators name, or ask them to change their policy. privacy.delta "
        "is at most 1/(100 · their units): 1e-6 for up to 10,000 of them.",
    ),
    Code.SITE_CONFIG: Entry(
        "The site's configuration cannot be used.",
        "site.toml is missing, is not TOML, or has a key or value that cannot be.",
        "Correct the key that the message names; the comments in site.toml say what each means.",
    ),
    Code.AUDIT_UNSUPPORTED: Entry(
        "The audit cannot attack a run of this kind.",
        "Its canaries are records with a text and a label, and its attack on the adapter reads a "
        "classifier's odds. A result for anything else would say nothing.",
        "Audit a text-classification plan with the same privacy, training and unit: sampling, "
        "clipping, noise and ledger are the same code for all tasks.",
    ),
    Code.PRIVACY_INEXACT: Entry(
        "The model's numbers for one record depend on other records.",
        "Before it serves a plan, a site has the model compute one record in every row of every "
        "batch that it will use, with different neighbours, and compares all bits. They differ, so "
        "a crafted adapter could make one record's influence larger than what is charged.",
        "Use another backbone, precision or machine; report it with the versions of torch and the "
        "processor's name.",
    ),
    Code.ADAPTER_REFUSED: Entry(
        "The global adapter is outside what the site's policy allows.",
        "Its numbers are far larger than training makes them, as those of an adapter that is built "
        "to amplify one record's influence. Nothing was computed or charged.",
        "Ask the coordinator how the adapter was made; the bounds are policy.adapter_* in "
        "site.toml.",
    ),
    Code.MESSAGE_MALFORMED: Entry(
        "A message could not be understood.",
        "A part is missing, has the wrong type or size, or comes from another version.",
        "Run the same version of Lorica at the coordinator and at every site.",
    ),
    Code.UPDATE_REFUSED: Entry(
        "An update was refused.",
        "It holds values that are not finite or that wire.update cannot hold, has tensors or "
        "number formats the plan does not have, or is far larger than any honest update.",
        "Look at the site's log for that round; the run goes on without the update.",
    ),
    Code.TOO_FEW_SITES: Entry(
        "Too few sites answered.",
        "Fewer sites than rounds.minimum_sites were ready or returned an update.",
        "Wait for the sites, see their refusals in rounds.jsonl, or lower rounds.minimum_sites.",
    ),
    Code.SITE_SILENT: Entry(
        "A site did not answer in time.",
        "No reply came within rounds.timeout_seconds.",
        "Raise rounds.timeout_seconds, or look at the site.",
    ),
    Code.NO_TRAINER: Entry(
        "This node has no trainer.",
        "The Flower node is neither part of a simulation nor connected to a site's trainer.",
        "Start the node through Lorica, which tells it where its trainer is.",
    ),
    Code.ENGINE_FAILED: Entry(
        "The simulation engine failed.",
        "Flower's simulation engine or Ray ended with an error of its own.",
        'Read the engine\'s message; engine="in-process" needs neither Ray nor workers.',
    ),
    Code.REQUEST_UNSIGNED: Entry(
        "The request is not signed, and the site answers signed requests only.",
        "The site's policy lists the coordinators that it answers; this request names none.",
        "At the coordinator, make a key with `lorica coordinator key FILE`, give its public half "
        "to the site's operators, and set LORICA_COORDINATOR_KEY to the file's path.",
    ),
    Code.SIGNATURE_INVALID: Entry(
        "The request's signature does not fit the request.",
        "Plan, adapter, run, round or kind of the request are not what the coordinator signed, "
        "or the signature was made with another key.",
        "Run the same version of Lorica at both ends; if it persists, somebody between them "
        "changes messages.",
    ),
    Code.COORDINATOR_UNKNOWN: Entry(
        "The request is signed by a coordinator that the site does not know.",
        "The key it is signed with is not listed in policy.coordinators of the site's site.toml.",
        "If this coordinator is meant to be answered, add its public key there.",
    ),
    Code.COORDINATOR_KEY: Entry(
        "The coordinator's key file cannot be used.",
        "It is not an Ed25519 private key in PEM, others may read it, or it would be overwritten.",
        "Make a key with `lorica coordinator key FILE` and keep its permissions at 0600.",
    ),
    Code.WORKER_DIED: Entry(
        "A worker process of a simulation died.",
        "The system ends processes when memory runs out; a crash in a library or a signal from "
        "someone ends them, too. Whole rounds are kept.",
        "Go on with lorica simulate --resume FOLDER. Where memory ran out, set "
        "simulation.workers to a lower number; 1 needs no workers at all.",
    ),
    Code.REQUEST_MISADDRESSED: Entry(
        "The request is signed for another site.",
        "A signature names the site that it is for, so that a request to one site is none to "
        "another. The name is the one that the coordinator's register has for this site's key.",
        "Set site.name in site.toml to the name of the invitation; `lorica coordinator sites` "
        "lists the names.",
    ),
    Code.REQUEST_REPLAYED: Entry(
        "The request was answered already.",
        "Every signed request is good for one answer. This one came again: it was recorded, or "
        "its answer was lost on the way.",
        "Nothing needs to be done: the coordinator signs anew when it asks again.",
    ),
    Code.REPLY_FORGED: Entry(
        "A reply does not come from the site in whose name it was sent.",
        "It lacks the signature of the key that the coordinator's register has for that site, or "
        "was changed on its way, or answers another request.",
        "Look at the site that the message names: its version, its node.key and its name.",
    ),
    Code.SITE_TOO_LARGE: Entry(
        "A site declares more units than it is believed to have.",
        "The weight of a site follows from what it declares, and how large a sum is believed; one "
        "absurd figure would drown all others.",
        "If the site is so large, raise most_units in coordinator.toml.",
    ),
    Code.ROSTER_INVALID: Entry(
        "The roster of a sealed sum is not genuine.",
        "A site's key for the run is not signed by that site, is none, or is there twice; or the "
        "site that was asked is not in the roster as it introduced itself.",
        "Do not go on with this coordinator before its operators have explained it.",
    ),
    Code.PEERS_UNCONFIRMED: Entry(
        "Too few of the sum's sites are known here.",
        "A sum hides a site among others only if these are real: the site's people confirm whom "
        "they know by the fingerprints of their keys (policy.peers, policy.fewest_peers).",
        "At the site: `lorica site peers show`, compare the fingerprints with the other sites' "
        "people, then `lorica site peers confirm NAME`.",
    ),
    Code.SUM_UNKNOWN: Entry(
        "The request belongs to another sum than the site's.",
        "A site gives its vector of a round to one sum: one roster, one threshold, one plan. This "
        "request names another one, or a sum that the site gave nothing to.",
        "Go on with the sum that was begun: resume the run from its folder.",
    ),
    Code.SURVIVORS_REFUSED: Entry(
        "The site does not open a sum over these sites.",
        "They are fewer than the threshold, the site itself is not among them, it agreed to "
        "another set before, or too few sites signed this one.",
        "Nothing was opened. If the coordinator's folder was lost, the round is lost with it.",
    ),
    Code.SEALED_REPLY_REFUSED: Entry(
        "A site's part of a sealed sum was refused.",
        "It is malformed, not signed, of another sum, or does not fit what the site committed "
        "itself to.",
        "Look at the site's log for that round; the sum is made without it if enough are left.",
    ),
    Code.SUM_LOST: Entry(
        "A sealed sum could not be opened.",
        "Too few sites gave their shares, or a site's shares do not fit its masks. Nothing of any "
        "single site was seen.",
        "Bring the sites back and resume the run: they answer the same round again at no cost. "
        "If the message names a site that cheats, go on without it.",
    ),
    Code.STORAGE_FULL: Entry(
        "The disk is full.",
        "A file could not be written; what was written before is kept whole.",
        "Free some space. Services go on by themselves; a run that ended goes on with `lorica run "
        "resume RUN`, a simulation with `lorica simulate --resume DIR`.",
    ),
    Code.STORAGE_DENIED: Entry(
        "A file or folder could not be read or written.",
        "The operating system refused: permissions, a read-only disk, or a path that is not "
        "a folder.",
        "Check the path and its permissions, or choose another --out.",
    ),
    Code.RUN_FOLDER_EXISTS: Entry(
        "The results folder holds another run.",
        "Lorica does not overwrite results.",
        "Choose another --out, remove the folder, or go on with --resume DIR.",
    ),
    Code.RUN_NOT_RESUMABLE: Entry(
        "The folder holds no run that can be resumed.",
        "It lacks plan.toml or its checkpoint is damaged or of another plan.",
        "Give the --out folder of an interrupted run, or start a new one.",
    ),
    Code.LEDGER_LOCKED: Entry(
        "The site's privacy ledger is in use by another process.",
        "Only one process may write a charge at a time, and another one held the ledger for "
        "longer than this one waits. Nothing ran and nothing was charged.",
        "Ask again; if it stays so, see which process has the ledger's file open.",
    ),
    Code.LEDGER_DAMAGED: Entry(
        "The site's privacy ledger is damaged.",
        "An entry was changed, removed or reordered, or the file cannot be read. What the data "
        "have spent is then not known, so nothing private runs.",
        "Run `lorica site ledger verify`, which names the entries; put back the newest copy of "
        "the ledger together with its .anchor file.",
    ),
    Code.LEDGER_ROLLED_BACK: Entry(
        "The site's privacy ledger lacks its newest entries.",
        "Its anchor, the small file beside it, knows of entries that the ledger does not have: "
        "they were removed, or an older copy was put in its place. Counting from it would spend "
        "the same budget twice, so nothing private runs.",
        "Put back the newest copy of the ledger. If there is none, start a new ledger whose "
        "lifetime budget is lowered by what the last export or report shows as spent.",
    ),
    Code.LEDGER_MISSING: Entry(
        "There is no privacy ledger where the site expects it.",
        "The file is absent or empty. A site does not silently start from zero: data that were "
        "used before have already spent some of their budget.",
        "Check ledger.path in site.toml. For a data set that has never been used, and for no "
        "other, make one: `lorica site ledger create`.",
    ),
    Code.LEDGER_MISMATCH: Entry(
        "The privacy ledger keeps another guarantee than the one asked for.",
        "Its data set, unit of privacy or delta, fixed when it was created, differs from the "
        "site's policy or the plan's. Epsilons at different units or deltas do not add up.",
        "Use the ledger of this data set, and plans whose privacy.unit is the ledger's.",
    ),
    Code.REQUEST_STALE: Entry(
        "The request was signed too long ago, or in the future.",
        "A signature says when it was made, and the site answers requests of the last hours only "
        "(policy.request_hours), so that a recorded one cannot be kept for later.",
        "Set the clocks of coordinator and site (NTP); a run that goes on signs its requests anew.",
    ),
    Code.TRAINER_DOWN: Entry(
        "The site's trainer is not running.",
        "The site's node is connected, but the process that holds the records did not answer for "
        "some time. Nothing was asked of the records.",
        "At the site: `lorica site status`, and start the trainer (`lorica site trainer`, or the "
        "supervision that starts it). The coordinator asks again by itself.",
    ),
    Code.TRAINER_BUSY: Entry(
        "The site's trainer has too many requests in hand.",
        "It works on one request at a time, and as many as it keeps were waiting already.",
        "Ask again later; start fewer runs at the same time.",
    ),
    Code.TRAINER_RUNNING: Entry(
        "The site's trainer is running already.",
        "One process serves a trainer's socket, so that data, model and ledger are held once.",
        "Use the one that runs, or end it first; `lorica site status` shows it.",
    ),
    Code.TRAINER_SOCKET: Entry(
        "The trainer's socket cannot be used.",
        "Its path is too long or is not a socket, or others could put another in its place.",
        "Give the site a folder of its own with mode 0700, or set trainer.socket in site.toml.",
    ),
    Code.TRAINER_NOT_ISOLATED: Entry(
        "The trainer could not leave the network.",
        "It runs without any network unless site.toml says otherwise, and the system does not let "
        "it.",
        "Take the network from outside (systemd: PrivateNetwork=yes; containers: network_mode: "
        'none), allow user namespaces, or write trainer.isolation = "auto" in site.toml.',
    ),
    Code.CODE_NOT_APPROVED: Entry(
        "The site runs approved code only, and this is not.",
        "The bundle of apps (FAB) is not among those whose SHA-256 the site recorded, or what is "
        "installed is not what was approved.",
        "At the site, look into the bundle and approve it: `lorica site approve FILE.fab`.",
    ),
    Code.AWAITING_APPROVAL: Entry(
        "The run awaits approval by the site.",
        "The site takes part only in runs that one of its people has approved; it has noted this "
        "one, and nothing was asked of the records.",
        "At the site: `lorica site pending`, then `lorica site approve-run RUN` or `deny-run "
        "RUN`. The coordinator asks again by itself.",
    ),
    Code.RUN_DENIED: Entry(
        "The site denied this run.",
        "One of the site's people decided that it takes no part in it.",
        "Go on without the site, or ask its operators.",
    ),
    Code.RUN_NOT_ASKED: Entry(
        "No single run of that name was asked for.",
        "A decision is about one run id under one plan that a coordinator asked this site for.",
        "List them with `lorica site pending`; add --plan with the first digits of the plan's "
        "fingerprint where there are several.",
    ),
    Code.INVITATION_INVALID: Entry(
        "The invitation cannot be used.",
        "It is cut short or altered, has expired, was used already, or was withdrawn.",
        "Ask the coordinator's operators for a new one: `lorica coordinator invite NAME`.",
    ),
    Code.REGISTRATION_REFUSED: Entry(
        "The registration request does not fit an invitation.",
        "It was altered on its way, was made with another invitation, or was not signed with the "
        "key that it holds.",
        "Have the site make a new request with its own invitation: `lorica site init --token`.",
    ),
    Code.FEDERATION_EXISTS: Entry(
        "There is a coordinator or a site in this folder already.",
        "Keys and registers are never overwritten.",
        "Choose another folder, or use what is there.",
    ),
    Code.FEDERATION_MISSING: Entry(
        "There is no coordinator or site in this folder.",
        "A file that `lorica coordinator init` or `lorica site init` writes is missing or damaged.",
        "Give the right folder, or set it up with `lorica coordinator init` or `lorica site init`.",
    ),
    Code.CERTIFICATE: Entry(
        "A certificate cannot be used.",
        "It has expired, is not yet valid, names another host, or is signed by another authority.",
        "At the coordinator: `lorica coordinator rotate`, with the names that sites use; at a site "
        "check the clock and that ca.crt is the coordinator's.",
    ),
    Code.ALREADY_RUNNING: Entry(
        "It is running already.",
        "Another process holds the lock of this folder; two would work against each other.",
        "Stop the one that runs (its process id is in the message), or leave it be.",
    ),
    Code.PROGRAM_MISSING: Entry(
        "A program that is needed was not found.",
        "Lorica starts Flower's programs and the reverse proxy nginx, which must be installed.",
        "Install the program that the message names (Debian: apt-get install nginx-light).",
    ),
    Code.COORDINATOR_DOWN: Entry(
        "The coordinator's SuperLink does not answer.",
        "Runs and sites are managed over its private interface, which nobody serves now, or which "
        "this machine cannot reach.",
        "Start it with `lorica coordinator start`, and look at its logs in the folder logs/.",
    ),
    Code.SITE_UNKNOWN: Entry(
        "There is no such site.",
        "The name is not among the sites that were invited or admitted.",
        "See the names that `lorica coordinator sites` lists.",
    ),
    Code.CHECK_FAILED: Entry(
        "Not every check was passed.",
        "At least one thing that the service needs is not as it should be.",
        "Mend what the lines marked with a cross say, and check again.",
    ),
    Code.PORT_TAKEN: Entry(
        "A port is taken.",
        "Another program listens on a port that was to be served here.",
        "Stop that program, or set another port in the configuration that the message names.",
    ),
    Code.COORDINATOR_CONFIG: Entry(
        "The coordinator's configuration cannot be used.",
        "coordinator.toml is not TOML, or it or an option of `lorica coordinator init` has a key "
        "or value that cannot be.",
        "Correct what the message names; the comments in coordinator.toml say what each key means.",
    ),
    Code.TOO_MANY_PENDING: Entry(
        "Too many runs of this coordinator await the site's decision.",
        "A site keeps so many undecided requests of one coordinator and no more, so that junk "
        "neither fills its disk nor pushes out what somebody is to decide about.",
        "At the site, decide about what `lorica site pending` lists; the coordinator asks again.",
    ),
    Code.RUN_UNKNOWN: Entry(
        "There is no such run.",
        "The id is not in the run store, or among the coordinator's runs.",
        "See the ids that `lorica runs list`, or `lorica run list` at a coordinator, lists; their "
        "first characters are enough.",
    ),
    Code.RUN_STATE: Entry(
        "The run is not in a state for that.",
        "A run can be stopped while it is queued or running, and resumed when it is neither and "
        "has rounds left.",
        "Look at it with `lorica run show`.",
    ),
    Code.RUN_CRASHED: Entry(
        "The run died again and again without a whole round.",
        "It was taken up again several times and made no progress.",
        "Look at the coordinator's logs, mend the cause, then `lorica run resume`.",
    ),
    Code.RUN_STOPPED: Entry(
        "The run was stopped by an operator.",
        "Its last whole round is saved; the round in hand was given up.",
        "Take it up again from there with `lorica run resume`.",
    ),
    Code.STORE_UNREACHABLE: Entry(
        "The run store cannot be used.",
        "The database cannot be opened or reached, its URL is none, or its disk is full.",
        "Check the URL in LORICA_STORE or --store, and that the database runs; LORICA_STORE=none "
        "runs without a store.",
    ),
    Code.STORE_SCHEMA: Entry(
        "The run store was written by a newer Lorica.",
        "Its tables have a schema that this version does not know, and could damage.",
        "Install the newer version here, or give this one a store of its own by LORICA_STORE.",
    ),
    Code.STORE_BEHIND: Entry(
        "The run store is behind the run.",
        "The store could not be written. The run goes on, and its results folder has everything.",
        "Mend the store: the run catches up by itself; after its end, use `lorica runs import "
        "FOLDER`.",
    ),
    Code.ARTEFACT_UNKNOWN: Entry(
        "The run has no such artefact.",
        "The name is not among the run's artefacts, or its file is gone from the results folder.",
        "See the names that `lorica runs show RUN` lists.",
    ),
    Code.RUN_EXISTS: Entry(
        "The store has another run of this id.",
        "Run ids are unique in a store.",
        "Choose another id, or resume the run that has it.",
    ),
    Code.TRACKER_FAILED: Entry(
        "The experiment tracker cannot be used.",
        "The option --track names no tracker that Lorica knows, or it did not take the run.",
        "Use mlflow:URI or tensorboard:DIR, and check that the place can be reached and written.",
    ),
    Code.MONITOR_SETTINGS: Entry(
        "The monitor cannot be served as asked.",
        "The public address is not one, or the certificate and its key are not both there.",
        "Correct the option that the message names; `lorica monitor --help` describes each.",
    ),
    Code.MONITOR_OPEN: Entry(
        "Others could reach the monitor, and it has no account.",
        "Without accounts the monitor is for this machine alone, by the link that it prints. "
        "Anywhere else whoever finds it could read everything and stop runs.",
        "Make an account first: `lorica monitor user add NAME --role operator`; or listen on "
        "127.0.0.1.",
    ),
    Code.MONITOR_PLAINTEXT: Entry(
        "Passwords would travel unencrypted.",
        "The monitor was asked to listen where others can reach it, without TLS.",
        "Give --certificate and --key; or put a reverse proxy with TLS in front and give its "
        "https address as --public-url. On a network that is encrypted already, give the "
        "monitor's http address as --public-url.",
    ),
    Code.ACCOUNT: Entry(
        "There is something wrong with the account.",
        "Its name cannot be, is taken, or does not exist; or there is no such role.",
        "See the accounts that `lorica monitor user list` shows.",
    ),
    Code.PASSWORD_WEAK: Entry(
        "The password is too weak.",
        "A password has at least 12 characters, not all alike, and does not hold the account's "
        "name.",
        "Choose another; a few random words are easy to keep in mind.",
    ),
    Code.API_TOKEN: Entry(
        "There is something wrong with the API token.",
        "Its name cannot be, is taken, or does not exist; or it would never be valid.",
        "See the tokens that `lorica monitor token list` shows; revoke a lost one, make another.",
    ),
    Code.ACCESS_DENIED: Entry(
        "Only an operator may do this.",
        "The account is a viewer's: it reads, and changes nothing.",
        "Ask an operator; `lorica monitor user` changes accounts at the coordinator's machine.",
    ),
    Code.REQUEST_FOREIGN: Entry(
        "The request does not come from the monitor's own pages.",
        "Its Host header names another host, or it was sent by another site's page: browsers can "
        "be made to send such requests without their owner's knowledge.",
        "Open the monitor by the address that it printed. Behind a reverse proxy, start it with "
        "--public-url, and let the proxy pass the Host header on.",
    ),
    Code.FORM_FORGED: Entry(
        "The form does not belong to this session.",
        "It lacks the session's CSRF token, or was opened before the last sign-in.",
        "Load the page again and repeat what you did.",
    ),
    Code.MONITOR_PORT: Entry(
        "The monitor cannot listen at its address.",
        "Another process uses the port, or the address is not one of this machine's.",
        "Choose another with --port or --host.",
    ),
    Code.SERVER_BUSY: Entry(
        "The server has too many texts in hand.",
        "More texts wait for predictions than the server lets wait.",
        "Ask again in a moment, send fewer texts at once, or start the server with a larger "
        "--waiting.",
    ),
    Code.SERVER_REQUEST: Entry(
        "The server cannot take this request.",
        "A body that is too large or no JSON object of texts, or more texts than go at once.",
        "See the server's /docs for what it takes; its limits are options of `lorica serve`.",
    ),
    Code.SERVER_TOKEN: Entry(
        "The server asks for a token.",
        "Callers send the server's token with every request.",
        'Send the header "Authorization: Bearer TOKEN" with the token of the server\'s '
        "--token-file.",
    ),
    Code.UNEXPECTED: Entry(
        "Something failed that should not.",
        "An error that Lorica did not foresee.",
        "Report it with the traceback that the site or command logged.",
    ),
}


class LoricaError(Exception):
    """An error with a code, a sentence of what happened, and how to mend it.

    Args:
        code: the catalogue's code.
        detail: what happened and what was expected, for the person at this machine.
        mend: how to mend this very case; the catalogue's general advice when omitted.
    """

    def __init__(self, code: Code, detail: str, *, mend: str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.mend = mend or code.entry.mend

    @property
    def public_reason(self) -> str:
        """Code and title: all that may leave a site."""
        return self.code.public_reason

    @property
    def exit_status(self) -> int:
        """The process's exit status: 10 + the area's digit (11 plan, 12 backbone, …)."""
        return 10 + int(self.code.value[4])

    def __str__(self) -> str:
        return f"[{self.code.value}] {self.detail}"

    def __reduce__(self) -> tuple[object, ...]:  # crosses process borders (Ray, xdist)
        return (_rebuild, (self.code, self.detail, self.mend))


def _rebuild(code: Code, detail: str, mend: str) -> LoricaError:
    return LoricaError(code, detail, mend=mend)


def is_failure(error: BaseException) -> bool:
    """Whether what was raised is a failure of what ran, and not the end of the process: an
    exception, or a panic of a library in Rust (tokenizers, safetensors), which Python has as
    another ``BaseException``. Both may depend on a record and hold its text."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
