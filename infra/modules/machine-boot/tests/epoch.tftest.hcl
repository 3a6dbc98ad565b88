run "the_beginning" {
  command = plan

  module {
    source = "./epoch"
  }

  variables {
    moment = "1970-01-01T00:00:00Z"
  }

  assert {
    condition     = timeadd("1970-01-01T00:00:00Z", "${output.seconds}s") == "1970-01-01T00:00:00Z"
    error_message = "1970-01-01T00:00:00Z is not ${output.seconds} s after the beginning of 1970."
  }
}

run "a_leap_day" {
  command = plan

  module {
    source = "./epoch"
  }

  variables {
    moment = "2028-02-29T23:59:59Z"
  }

  assert {
    condition     = timeadd("1970-01-01T00:00:00Z", "${output.seconds}s") == "2028-02-29T23:59:59Z"
    error_message = "2028-02-29T23:59:59Z is not ${output.seconds} s after the beginning of 1970."
  }
}

run "the_day_after_it" {
  command = plan

  module {
    source = "./epoch"
  }

  variables {
    moment = "2028-03-01T00:00:00Z"
  }

  assert {
    condition     = timeadd("1970-01-01T00:00:00Z", "${output.seconds}s") == "2028-03-01T00:00:00Z"
    error_message = "2028-03-01T00:00:00Z is not ${output.seconds} s after the beginning of 1970."
  }
}

run "the_end_of_a_year" {
  command = plan

  module {
    source = "./epoch"
  }

  variables {
    moment = "2026-12-31T23:59:59Z"
  }

  assert {
    condition     = timeadd("1970-01-01T00:00:00Z", "${output.seconds}s") == "2026-12-31T23:59:59Z"
    error_message = "2026-12-31T23:59:59Z is not ${output.seconds} s after the beginning of 1970."
  }
}

run "january" {
  command = plan

  module {
    source = "./epoch"
  }

  variables {
    moment = "2027-01-31T08:09:10Z"
  }

  assert {
    condition     = timeadd("1970-01-01T00:00:00Z", "${output.seconds}s") == "2027-01-31T08:09:10Z"
    error_message = "2027-01-31T08:09:10Z is not ${output.seconds} s after the beginning of 1970."
  }
}

run "a_century_without_leap_day" {
  command = plan

  module {
    source = "./epoch"
  }

  variables {
    moment = "2100-03-01T12:00:00Z"
  }

  assert {
    condition     = timeadd("1970-01-01T00:00:00Z", "${output.seconds}s") == "2100-03-01T12:00:00Z"
    error_message = "2100-03-01T12:00:00Z is not ${output.seconds} s after the beginning of 1970."
  }
}

run "one_with" {
  command = plan

  module {
    source = "./epoch"
  }

  variables {
    moment = "2000-02-29T00:00:01Z"
  }

  assert {
    condition     = timeadd("1970-01-01T00:00:00Z", "${output.seconds}s") == "2000-02-29T00:00:01Z"
    error_message = "2000-02-29T00:00:01Z is not ${output.seconds} s after the beginning of 1970."
  }
}

run "november" {
  command = plan

  module {
    source = "./epoch"
  }

  variables {
    moment = "2026-11-21T20:01:05Z"
  }

  assert {
    condition     = timeadd("1970-01-01T00:00:00Z", "${output.seconds}s") == "2026-11-21T20:01:05Z"
    error_message = "2026-11-21T20:01:05Z is not ${output.seconds} s after the beginning of 1970."
  }
}

run "not_utc" {
  command = plan

  module {
    source = "./epoch"
  }

  variables {
    moment = "2026-11-21T20:01:05+01:00"
  }

  expect_failures = [var.moment]
}
