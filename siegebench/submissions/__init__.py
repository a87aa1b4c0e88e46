"""Submissions: rows that somebody measured elsewhere, as a folder of JSON files. Nothing in it is ever executed.

    submissions/TRACK/NAME/submission.json     who, licence, method, paper, protocol, hashes of the other files
    submissions/TRACK/NAME/rows/*.json         the rows, as a store has them
    submissions/TRACK/NAME/suites/*.yaml       the suites that made them, if they are not bundled
    submissions/TRACK/NAME/review.json         written by those who ran cells again, never by the author

`collect` writes a folder from a store, `validate` refuses what is wrong in one, `rerun` computes cells again, `board`
reads the folders for the leaderboard, and `comment` says all of it in Markdown. Only `rerun` needs torch.
"""
