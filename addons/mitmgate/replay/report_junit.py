"""A replay's report as JUnit XML: one test case a route, failed where a request of it is decided otherwise."""

from xml.etree.ElementTree import Element, SubElement, indent, tostring  # written, never parsed

from mitmgate.replay.decision import NO_RULE
from mitmgate.replay.differences import Group
from mitmgate.replay.report_table import summary
from mitmgate.replay.run import FAILING, FailOn, Report


def as_junit(report: Report, fail_on: FailOn, covered: float | None = None, wanted: float = 0.0) -> str:
    """Write the report. fail_on: the differences that make a case fail; others are in its output.

    covered: percent of the policy's rules, a case of its own; it fails below `wanted`.
    """
    failing = FAILING[fail_on]
    suite = Element("testsuite", name=f"replay {_xml(report.traffic)}")
    by_route: dict[str, list[Group]] = {}
    for group in report.tally.groups:
        by_route.setdefault(group.route, []).append(group)
    failures = 0
    for route in sorted({*report.routes, *by_route}):
        name = "requests without a route" if route == NO_RULE else f"route {_xml(route)}"
        case = SubElement(suite, "testcase", classname=_xml(report.policy), name=name)
        groups = by_route.get(route, [])
        failed = [group for group in groups if group.kind in failing]
        for group in failed:
            failure = SubElement(case, "failure", type=group.kind.value, message=_xml(_message(group)))
            failure.text = _xml("\n".join([_principals(group), *group.examples]))
        failures += bool(failed)
        others = [_message(group) for group in groups if group.kind not in failing]
        SubElement(case, "system-out").text = _xml("\n".join([f"{report.routes[route]:,} decided", *others]))
    if not report.decided:
        case = SubElement(suite, "testcase", classname=_xml(report.policy), name="something was decided")
        SubElement(case, "failure", type="empty", message="nothing was decided")
        failures += 1
    if covered is not None:
        case = SubElement(suite, "testcase", classname=_xml(report.policy), name="coverage")
        if covered < wanted:
            message = f"coverage {covered:.1f} % is below {wanted:g} %"
            SubElement(case, "failure", type="coverage", message=message)
            failures += 1
        SubElement(case, "system-out").text = f"coverage {covered:.1f} %"
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(failures))
    suite.set("errors", "0")
    SubElement(suite, "system-out").text = _xml("\n".join(summary(report)))
    root = Element("testsuites")
    root.append(suite)
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _message(group: Group) -> str:
    return f"{group.kind.value}: {group.before} → {group.after}, {group.count:,} requests"


def _principals(group: Group) -> str:
    ranked = group.ranked
    more = f", and {len(ranked) - 20} more" if len(ranked) > 20 else ""
    return "principals: " + ", ".join(f"{principal} ({count})" for principal, count in ranked[:20]) + more


def _xml(text: str) -> str:
    """Replace what XML 1.0 can't hold (section 2.2)."""
    return "".join(
        c if c in "\t\n" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "?" for c in text
    )
