"""Files in, files out, of any size: see `translate_files`."""

from gnmt.decoding.files.formats import Origin, OutputFormat, short_digests
from gnmt.decoding.files.jobs import Job, plan_jobs
from gnmt.decoding.files.resumable import MadeFrom
from gnmt.decoding.files.translate import translate_files

__all__ = ["Job", "MadeFrom", "Origin", "OutputFormat", "plan_jobs", "short_digests", "translate_files"]
