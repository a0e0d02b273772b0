"""The kinds of labels: one class, several labels, a number, or one of ordered grades."""

CLASS, MULTI, NUMBER, GRADE = KINDS = ("class", "multi", "number", "grade")
KIND_NOUNS = {CLASS: "classes", MULTI: "labels", NUMBER: "numbers", GRADE: "grades"}
