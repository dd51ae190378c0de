from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Content(_message.Message):
    __slots__ = ("record",)
    RECORD_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    def __init__(self, record: _Optional[bytes] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("progress", "reply")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    reply: Content
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., reply: _Optional[_Union[Content, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("phase", "seconds")
    class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Progress.Phase]
        WAITING: _ClassVar[Progress.Phase]
        WORKING: _ClassVar[Progress.Phase]
    UNKNOWN: Progress.Phase
    WAITING: Progress.Phase
    WORKING: Progress.Phase
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    phase: Progress.Phase
    seconds: float
    def __init__(self, phase: _Optional[_Union[Progress.Phase, str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("site", "version", "pid", "uptime_seconds", "answered", "refused", "in_hand", "method", "run", "round", "working_seconds", "backbone_loads", "epsilon_spent", "epsilon_lifetime", "delta", "isolation")
    class AnsweredEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SITE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    IN_HAND_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    WORKING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BACKBONE_LOADS_FIELD_NUMBER: _ClassVar[int]
    EPSILON_SPENT_FIELD_NUMBER: _ClassVar[int]
    EPSILON_LIFETIME_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    site: str
    version: str
    pid: int
    uptime_seconds: float
    answered: _containers.ScalarMap[str, int]
    refused: int
    in_hand: int
    method: str
    run: str
    round: int
    working_seconds: float
    backbone_loads: int
    epsilon_spent: float
    epsilon_lifetime: float
    delta: float
    isolation: str
    def __init__(self, site: _Optional[str] = ..., version: _Optional[str] = ..., pid: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., answered: _Optional[_Mapping[str, int]] = ..., refused: _Optional[int] = ..., in_hand: _Optional[int] = ..., method: _Optional[str] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., working_seconds: _Optional[float] = ..., backbone_loads: _Optional[int] = ..., epsilon_spent: _Optional[float] = ..., epsilon_lifetime: _Optional[float] = ..., delta: _Optional[float] = ..., isolation: _Optional[str] = ...) -> None: ...
