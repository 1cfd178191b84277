"""Every Prometheus metric of the project, by the area that writes it.

Labels are few and bounded: topics, partitions, models, tasks, reasons; never a user or an item.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

# Sources and sinks
SOURCE_EVENTS = Counter("exfm_source_events_total", "Events read", ["topic"])
SOURCE_LAG = Gauge(
    "exfm_source_lag_messages", "Messages between position and end", ["topic", "partition"]
)
SOURCE_WATERMARK = Gauge(
    "exfm_source_watermark_seconds", "Event time complete up to here", ["topic", "partition"]
)
SOURCE_UNREAD = Gauge(
    "exfm_source_unread_partitions", "Partitions of a topic that nobody reads", ["topic"]
)
SOURCE_LOST = Counter(
    "exfm_source_lost_total", "Messages that were deleted before they were read", ["topic"]
)
SINK_EVENTS = Counter("exfm_sink_events_total", "Rows acknowledged by the broker", ["topic"])
SINK_ERRORS = Counter("exfm_sink_errors_total", "Failed deliveries", ["topic", "reason"])
REJECTED = Counter("exfm_source_rejected_total", "Events set aside", ["topic", "reason"])
DEAD_LETTERS = Counter("exfm_dead_letters_total", "Dead letters acknowledged", ["topic", "reason"])

# DAS: the windowed join
INPUT = ("shard", "input")  # input: one partition, as `labels/0`
DAS_PENDING = Gauge("exfm_das_pending_impressions", "Impressions whose window is open", ["shard"])
DAS_OLDEST = Gauge(
    "exfm_das_oldest_pending_seconds", "Event time of the oldest of them; NaN: none", ["shard"]
)
DAS_INPUT_WATERMARK = Gauge(
    "exfm_das_input_watermark_seconds", "Event time of an input, as a shard knows it", INPUT
)
DAS_INPUT_STANDING = Gauge(
    "exfm_das_input_standing_code",
    "0: waited for, 1: ended, 2: idle, 3: silent, 4: rejoining (flows/join/watermarks.py)",
    INPUT,
)
DAS_WATERMARK = Gauge("exfm_das_watermark_seconds", "Event time closed by a shard", ["shard"])
DAS_CLOSED = Counter("exfm_das_windows_closed_total", "Examples emitted", ["domain"])
DAS_REPEATS = Counter("exfm_das_repeats_total", "Repeated records dropped", ["kind"])
DAS_UNMATCHED = Counter(
    "exfm_das_unmatched_total",
    "Labels in no window of an impression, predictions of none",
    ["kind"],
)
DAS_CORRECTING = Counter(
    "exfm_das_labels_correcting_total",
    "Labels behind the end of the wait, in time to correct it",
    ["task"],
)
DAS_EARLY = Counter(
    "exfm_das_early_total", "Positives emitted before their window closed", ["task"]
)
DAS_CORRECTIONS = Counter("exfm_das_corrections_total", "Corrections emitted", ["task"])
DAS_KNOWN_NEGATIVES = Counter(
    "exfm_das_known_negatives_total",
    "Examples of a conditional task that left when its condition was not met",
    ["task"],
)
DAS_POSITIVES = Counter("exfm_das_positives_total", "Positive labels joined", ["task"])
DAS_COVERED = Counter("exfm_das_covered_total", "Examples with a teacher prediction", ["domain"])
DAS_LEFT_OUT = Counter("exfm_das_left_out_total", "Times the wall clock left an input out", ["way"])
DAS_TOO_LATE = Counter(
    "exfm_das_closed_bucket_total",
    "Rows (of impressions: windows) that found their bucket closed",
    ["kind"],
)
DAS_MOVED = Counter(
    "exfm_das_moved_total", "Live: examples of buckets that were complete before a restart"
)
DAS_RECOVERY = Gauge(
    "exfm_das_recovery_seconds", "Opening of a saved state at the start", ["shard"]
)
DAS_SNAPSHOT = Histogram("exfm_das_snapshot_seconds", "Recovery snapshot", buckets=SECONDS)
DAS_CLOSE = Histogram("exfm_das_close_seconds", "Closing of buckets", buckets=SECONDS)
DAS_SEGMENT_BYTES = Gauge("exfm_das_segment_bytes", "Segments on disk", ["shard"])

# FM inference
FM_SCORED = Counter("exfm_fm_scored_total", "Impressions scored", ["version_known"])
FM_VERSION = Gauge("exfm_fm_version_seconds", "Event time of the teacher snapshot in use")
FM_VERSION_AGE = Gauge("exfm_fm_version_age_seconds", "Event time since that snapshot")
FM_WAITING = Gauge("exfm_fm_waiting_partitions", "Partitions parked for a snapshot")
FM_BATCH = Histogram("exfm_fm_batch_seconds", "Scoring of a micro-batch", buckets=SECONDS)
FM_SWAPS = Counter("exfm_fm_swaps_total", "Teacher snapshots taken into use")

# Training
TRAIN_APPLIED = Counter("exfm_train_examples_total", "Examples applied", ["model"])
TRAIN_REPEATS = Counter("exfm_train_repeats_total", "Repeated rows dropped", ["model"])
TRAIN_GAPS = Counter("exfm_train_gaps_total", "Gaps in running numbers of examples", ["model"])
TRAIN_LEFT_OUT = Counter(
    "exfm_train_left_out_total", "Times the wall clock left a shard out", ["model"]
)
TRAIN_PASSED_OVER = Counter(
    "exfm_train_passed_over_total", "Rows that found their bucket passed, not learned", ["model"]
)
TRAIN_STEP = Histogram("exfm_train_step_seconds", "One optimiser step", ["model"], buckets=SECONDS)
TRAIN_NE = Gauge("exfm_train_ne_ratio", "Normalised entropy at impression time", ["model", "task"])
TRAIN_SHADOW_NE = Gauge("exfm_train_shadow_ne_ratio", "The same of the shadow", ["model", "task"])
TRAIN_FM_NE = Gauge("exfm_train_fm_ne_ratio", "The same of the teacher", ["model", "task"])
TRAIN_GAIN = Gauge("exfm_train_ne_gain_ratio", "NE gain over the shadow", ["model", "task"])
TRAIN_TRANSFER = Gauge(
    "exfm_train_transfer_ratio", "Share of the teacher's gain", ["model", "task"]
)
TRAIN_CALIBRATION = Gauge(
    "exfm_train_calibration_ratio", "Predicted over actual positives", ["model", "task"]
)
TRAIN_AUC = Gauge("exfm_train_auc_ratio", "Area under the ROC curve", ["model", "task"])
TRAIN_COVERAGE = Gauge(
    "exfm_train_fm_coverage_ratio", "Examples with a prediction, recent", ["model"]
)
TRAIN_FRESHNESS = Gauge(
    "exfm_train_newest_example_seconds", "Event time of the newest example applied", ["model"]
)
TRAIN_THROUGH = Gauge("exfm_train_through_seconds", "Event time applied completely", ["model"])

# Snapshots
SNAPSHOT_PUBLISHED = Counter("exfm_snapshot_published_total", "Snapshots published", ["model"])
SNAPSHOT_REFUSED = Counter("exfm_snapshot_refused_total", "Refused", ["model", "reason"])
SNAPSHOT_VERSION = Gauge("exfm_snapshot_version_seconds", "Newest published version", ["model"])
SNAPSHOT_SECONDS = Histogram("exfm_snapshot_publish_seconds", "Export and gate", buckets=SECONDS)

# Server
SERVE_REQUESTS = Counter("exfm_serve_requests_total", "Requests", ["model", "status"])
SERVE_ROWS = Counter("exfm_serve_rows_total", "Candidates scored", ["model"])
SERVE_SECONDS = Histogram(
    "exfm_serve_request_seconds", "Request latency", ["model"], buckets=SECONDS
)
SERVE_SWAPS = Counter("exfm_serve_swaps_total", "Versions swapped in", ["model"])
SERVE_REFUSED = Counter("exfm_serve_refused_versions_total", "Versions not loaded", ["model"])
SERVE_VERSION = Gauge("exfm_serve_version_seconds", "Version that serves", ["model"])
SERVE_NEWEST = Gauge(
    "exfm_serve_newest_example_seconds", "Event time of the newest example in it", ["model"]
)
