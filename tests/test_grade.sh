#!/bin/sh
# tests/test_grade.sh: build/grade on the rows of tests/golden/rewards.jsonl and on bad files. Last line: N passed, N failed.
cd "$(dirname "$0")/.." || exit 1
dir=build/tmp/grade
rows=tests/golden/rewards.jsonl
rm -rf $dir && mkdir -p $dir
. tests/verdict.sh

refuses() {   # name, what the message says, arguments; the records are standard input
    name=$1 says=$2
    shift 2
    build/grade "$@" > $dir/out 2> $dir/err
    status=$?
    [ $status -ne 0 ] && [ ! -s $dir/out ] && grep -q -e "$says" $dir/err
    verdict $? "$name"
}

sed 's/.*"want": \([01]\).*/\1/' $rows > $dir/want
build/grade $rows 2> $dir/share | sed 's/.*"reward": \([01]\).*/\1/' | cmp -s - $dir/want
verdict $? grades_a_file
build/grade < $rows 2> $dir/err | sed 's/.*"reward": \([01]\).*/\1/' | cmp -s - $dir/want
verdict $? grades_standard_input
grep -q "$(grep -c 1 $dir/want) of $(grep -c . $dir/want) right" $dir/share
verdict $? says_the_share
echo '{"answer": 0.75, "response": "so it is 3/4."}' | build/grade 2> $dir/err | grep -q '^{"line": 1, "reward": 1, "gold": "3/4", "said": "3/4"}$'
verdict $? shows_what_was_read
echo '{"answer": "7", "response": "7"}' | build/grade - --reward boxed 2> $dir/err | grep -q '"reward": 0, "gold": "7", "said": null}'
verdict $? the_reward_is_chosen_by_name
printf '\n{"answer": "7"}\n' > $dir/in && refuses a_record_without_a_response 'line 2: expected a text "response"' < $dir/in
printf '{"answer": [], "response": ""}\n' > $dir/in && refuses an_answer_of_another_type 'line 1: expected a text or number "answer"' < $dir/in
printf '{"answer": "7", "response": "7", "reward": "best"}\n' > $dir/in && refuses an_unknown_reward '"reward" is "best"' < $dir/in
printf 'no json\n' > $dir/in && refuses a_line_that_is_no_json 'line 1: JSON' < $dir/in
printf '' > $dir/in && refuses an_empty_file 'has no records' < $dir/in
refuses an_unknown_option_value '--reward is "best"' $rows --reward best < $rows
refuses a_file_that_is_not_there 'cannot read' $dir/none < $rows
summary
